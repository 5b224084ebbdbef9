# SPDX-License-Identifier: Apache-2.0
"""The command group: help of every command, exit codes, and what the README says of them."""

import errno
import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tvmattend import errors
from tvmattend.cli import main as entry
from tvmattend.errors import TvmattendError

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, TvmattendError)
]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as leave:
        entry.main(arguments)
    return int(leave.value.code or 0)


@pytest.mark.parametrize("name", entry._COMMANDS)
def test_every_command_has_help(name):
    result = CliRunner().invoke(entry.cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_who_has_no_home_has_the_cache(tmp_path, monkeypatch, capsys):
    def unknown(_):
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("HOME", "")  # put back afterwards, whatever is set meanwhile
    monkeypatch.delenv("HOME")
    for name in ("XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR", "TVMATTEND_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(["build", "--target", "host", "--model", "attendnext_tiny"]) == 13
    assert "TVMATTEND_CACHE" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path))
    assert run(["models"]) == 0
    assert Path.home() == tmp_path


@pytest.mark.parametrize("name", entry._COMMANDS)
def test_every_number_has_a_range(name):
    """Else one command would call it a wrong command line, and another a wrong model."""
    command = entry.cli.get_command(click.Context(entry.cli), name)
    kinds = {option.name: type(option.type) for option in command.params}
    bare = {type(click.INT), type(click.FLOAT)}
    assert [option for option, kind in kinds.items() if kind in bare] == []


@pytest.mark.parametrize(
    "words",
    [
        ["build", "--batch", "0"],
        ["build", "--num-classes", "99999999999999999999999"],
        ["tune", "--trials", "0"],
        ["bench", "--rounds", "0"],
        ["profile", "bundle", "--runs", "0"],
        ["run", "bundle", "--repeat", "0"],
        ["build", "--threads", "100000"],
        ["build", "--seed", "99999999999999999999"],
        ["tune", "--timeout", "nan"],
        ["tune", "--timeout", "inf"],
        ["tune", "--board-wait", "inf"],
        ["run", "bundle", "--timeout", "nan"],
    ],
)
def test_a_number_out_of_range_is_a_wrong_command_line(words, capsys):
    assert run(words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: invalid value for '{words[-2]}': ")
    assert second == f"hint: `tvmattend {words[0]} --help` lists what it takes"


def test_exit_codes_are_distinct_and_in_the_readme():
    codes = [cls.exit_code for cls in CLASSES if errors.TvmattendError in cls.__bases__]
    assert len(set(codes)) == len(codes)
    assert 2 not in codes, "click's own code for a wrong command line"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)}
    assert set(codes) <= listed


def test_an_error_is_two_lines_and_its_exit_code(capsys):
    assert run(["build", "--target", "pentium"]) == errors.TargetError.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


def test_debug_shows_the_traceback_wherever_it_stands(capsys):
    for arguments in (
        ["--debug", "build", "--model", "nope"],
        ["build", "--model", "nope", "--debug"],
    ):
        assert run(arguments) == errors.ModelError.exit_code
        assert "Traceback" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(capsys):
    assert run(["compile"]) == 2
    assert capsys.readouterr().err.startswith("error: no such command")


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(tmp_path):
    """Before anything of ours could handle it, but for the entry point."""
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "tvmattend", "models"],
        check=False, capture_output=True, text=True, env=environment, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_full_disk_is_no_fault_of_ours_wherever_it_is_met(capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "some/file")

    monkeypatch.setattr(entry.cli, "main", full)
    assert run(["models"]) == errors.StorageError.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: some/file: No space left on device"
    assert lines[1].startswith("hint: free some space")
    assert len(lines) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_interrupt_the_cleaning_up(monkeypatch, number):
    """`timeout` sends two: to the command, and to its process group."""
    cleaned = []

    def invoke(*_):
        try:
            os.kill(os.getpid(), number)
        finally:
            for each in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), each)
            cleaned.append(True)

    monkeypatch.setattr("click.Group.invoke", invoke)
    before = signal.getsignal(number)
    assert run(["models"]) == 130
    assert cleaned
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored(monkeypatch):
    monkeypatch.setattr("click.Group.invoke", lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(["models"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
