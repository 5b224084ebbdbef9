# SPDX-License-Identifier: Apache-2.0
"""`tvmattend boards`, and a tracker given to run and validate."""

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tvmattend.cli.boards import command
from tvmattend.cli.run import command as run_command
from tvmattend.cli.validate import command as validate_command
from tvmattend.device.endpoint import tracker_endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.errors import BoardUnreachableError, NoFreeBoardError


@pytest.fixture(autouse=True)
def no_tracker_in_the_environment(monkeypatch):
    for name in ("HOST", "PORT", "KEY"):
        monkeypatch.delenv(f"TVM_TRACKER_{name}", raising=False)


def test_the_table_and_the_json(tracker, tmp_path, monkeypatch):
    cpu = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    cpu.mkdir(parents=True)
    (cpu / "scaling_governor").write_text("ondemand")
    (cpu / "scaling_cur_freq").write_text("600000")
    board = {"core": "cortex-a72"}
    options = ServerOptions(tracker=tracker, sysfs=tmp_path, board=board)
    with serve_here(options) as server:
        result = CliRunner().invoke(command, ["--rpc-tracker", tracker.address])
        header, row = result.stdout.splitlines()
        expected = ["key", "address", "core", "clock", "governor", "temperature", "state"]
        assert header.split() == expected
        assert row.split() == [
            *("pi4", server.address, "cortex-a72", "600", "MHz", "ondemand", "-", "free")
        ]
        monkeypatch.setenv("TVM_TRACKER_HOST", "127.0.0.1")
        monkeypatch.setenv("TVM_TRACKER_PORT", str(tracker.port))
        told = json.loads(CliRunner().invoke(command, ["--key", "pi4", "--json"]).stdout)
        assert told["tracker"] == tracker.address
        (mine,) = told["boards"]
        assert (mine["core"], mine["busy"], mine["clock_mhz"]) == ("cortex-a72", False, 600.0)
        assert mine["temperature_c"] is None
        none = CliRunner().invoke(command, ["--key", "pi5", "--json"])
        assert json.loads(none.stdout)["boards"] == []
        empty = CliRunner().invoke(command, ["--key", "pi5"])
        assert isinstance(empty.exception, NoFreeBoardError)
        assert "has no board `pi5`" in str(empty.exception)


def test_a_board_that_says_nothing_is_not_called_free(tracker):
    with serve_here(ServerOptions(tracker=tracker)) as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            result = CliRunner().invoke(command, ["--rpc-tracker", tracker.address])
            told = CliRunner().invoke(command, ["--rpc-tracker", tracker.address, "--json"])
        finally:
            os.kill(server.pid, signal.SIGCONT)
    assert result.stdout.splitlines()[1].endswith("  no answer")
    (frozen,) = json.loads(told.stdout)["boards"]
    assert (frozen["reachable"], frozen["silent"]) == (True, True)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--rpc-tracker", "127.0.0.1:1"], BoardUnreachableError, "tracker 127.0.0.1:1"),
        (["--rpc-tracker", "a:b:c"], BoardUnreachableError, "a:b:c"),
        (["--rpc-tracker", "127.0.0.1:1", "--key", ""], BoardUnreachableError, "is not a key"),
        ([], SystemExit, "give --rpc-tracker"),
    ],
)
def test_bad_input(words, error, says):
    result = CliRunner().invoke(command, words)
    assert isinstance(result.exception, error)
    assert says in f"{result.exception} {result.output}"


def test_an_error_is_two_lines_and_an_exit_code():
    words = ["-m", "tvmattend", "boards", "--rpc-tracker", "127.0.0.1:1"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize("which", [run_command, validate_command])
@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--rpc", "pi4", "--rpc-tracker", "pi4"], SystemExit, "--rpc names one board"),
        (["--key", "pi4"], SystemExit, "--rpc-key goes with"),
        (["--rpc-tracker", "pi4"], SystemExit, "needs a key"),
        (["--rpc-tracker", "pi4", "--key", "a b"], BoardUnreachableError, "is not a key"),
    ],
)
def test_which_board_a_bundle_runs_on(which, words, error, says, tmp_path):
    result = CliRunner().invoke(which, [str(tmp_path), *words])
    assert isinstance(result.exception, error)
    assert says in f"{result.exception} {result.output}"


def test_a_tracker_reaches_the_loader(monkeypatch, tmp_path):
    given = []

    def stop(path, board, *_):
        given.append(board)
        raise BoardUnreachableError("far enough")

    monkeypatch.setattr("tvmattend.runtime.remote.load_remote", stop)
    words = [str(tmp_path), "--rpc-tracker", "farm", "--key", "pi4"]
    assert "far enough" in str(CliRunner().invoke(run_command, words).exception)
    assert given == [tracker_endpoint("farm:9190", "pi4")]
