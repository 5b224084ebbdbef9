# SPDX-License-Identifier: Apache-2.0
"""`tvmattend device` as a user starts and stops it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import psutil
import pytest

from tvmattend.device.board import probe
from tvmattend.device.emulated import EmulatedBoard
from tvmattend.device.endpoint import Endpoint
from tvmattend.target import host_target, parse_target


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tvmattend", "device", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the first line that it printed."""
    with subprocess.Popen(
        command(arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def fails(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(arguments),
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done


def closed(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_this_machine_until_told_to_stop(number: signal.Signals) -> None:
    with serving("--port", "0") as (process, line):
        assert line.startswith("serving this machine on 127.0.0.1:")
        address = line.split()[-1]
        assert not probe(address, host_target()).emulated
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 0
        assert (out, err.splitlines()[-1]) == ("", "stopped")
        assert "warning" not in err
        assert closed(address)
        assert not [child for child in family if child.is_running()]


def test_a_board_of_a_tracker_says_how_it_is_asked_for(tracker: Endpoint) -> None:
    with serving("--port", "0", "--tracker", tracker.address, "--key", "a&b") as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert f"use it with `--rpc-tracker {tracker.address} --key 'a&b'`" in err


def test_the_server_ends_with_a_command_that_is_killed() -> None:
    with serving("--port", "0") as (process, line):
        process.kill()
    assert closed(line.split()[-1])


def test_a_server_that_dies_is_an_error() -> None:
    with serving("--port", "0") as (process, line):
        for child in psutil.Process(process.pid).children():
            child.kill()
        _, err = process.communicate(timeout=10)
        assert process.returncode == 7
        assert f"error: the server on {line.split()[-1]} ended by itself with -9" in err


@pytest.mark.emulated
def test_it_serves_an_emulated_board(emulated: EmulatedBoard) -> None:
    with serving("--emulate", "cortex-a72", "--port", "0", "--json") as (process, line):
        facts = json.loads(line)
        assert facts["emulated"] is True
        assert facts["core"] == "cortex-a72"
        assert facts["rpc"] == f"127.0.0.1:{facts['port']}"
        assert probe(facts["rpc"], parse_target("cortex-a72")).emulated
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
        assert (process.returncode, out) == (0, "")
        assert closed(facts["rpc"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "board.local"])  # noqa: S104
def test_an_address_that_others_reach_is_refused(host: str) -> None:
    done = fails("--host", host, "--port", "0")
    assert done.returncode == 20
    error, hint = done.stderr.splitlines()
    assert f"error: {host} is not loopback" in error
    assert "runs code as you" in error
    assert "ssh://USER@HOST" in hint
    assert "--insecure" in hint


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_loopback_has_several_names(host: str) -> None:
    with serving("--host", host, "--port", "0") as (process, line):
        assert line.startswith(f"serving this machine on {host}:")
        process.terminate()


def test_an_open_port_is_warned_of() -> None:
    with serving("--host", "0.0.0.0", "--insecure", "--port", "0") as (process, line):  # noqa: S104
        assert line.startswith("serving this machine on 0.0.0.0:")
        process.terminate()
        _, err = process.communicate(timeout=10)
        assert "warning: 0.0.0.0 is not loopback" in err
        assert "runs code as you" in err


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = fails("--port", str(port))
    assert done.returncode == 20
    assert done.stderr.splitlines() == [
        f"error: cannot serve on 127.0.0.1:{port}: Address already in use",
        "hint: choose another --port (0 takes a free one) or --host",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--port", "70000"], 2, "70000 is not in the range"),
        (["--emulate", "cortex-m0"], 2, "cortex-m0"),
        (["--tracker", "farm:9190"], 2, "--tracker and --key go together"),
        (["--key", "pi4"], 2, "--tracker and --key go together"),
        (["--tracker", "farm:x", "--key", "pi4"], 7, "`farm:x` is not an address"),
        (["--port", "0", "--tracker", "127.0.0.1:9", "--key", "pi4"], 7, "tracker 127.0.0.1:9: "),
        (["--host", "no-such-host.invalid", "--insecure"], 20, "no-such-host.invalid:9090"),
    ],
)
def test_bad_options(arguments: list[str], code: int, text: str) -> None:
    done = fails(*arguments)
    assert done.returncode == code
    assert text in done.stderr


@pytest.mark.parametrize("what", ["nothing", "another program"])
def test_no_tracker_is_one_line_and_a_hint(what: str, closed_port: str, ssh_port: str) -> None:
    address = closed_port if what == "nothing" else ssh_port
    done = fails("--port", "0", "--tracker", address, "--key", "pi4")
    assert done.returncode == 7
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert address in error
    assert "python -m tvm.exec.rpc_tracker" in hint


@pytest.mark.parametrize("host", ["", "  "])
def test_an_empty_address_is_a_mistake(host: str) -> None:
    done = fails("--host", host)
    assert (done.returncode, "--host: is empty" in done.stderr) == (2, True), done.stderr
