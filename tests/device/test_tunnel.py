# SPDX-License-Identifier: Apache-2.0
"""`--rpc ssh://...`: a tunnel by the system's `ssh`, here one that forwards on this machine."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvmattend.device import tunnel
from tvmattend.device.board import probe
from tvmattend.device.endpoint import Endpoint, parse_endpoint
from tvmattend.device.tunnel import SshAddress, Tunnel, parse_ssh, reached
from tvmattend.errors import BoardUnreachableError, StorageError, ToolMissingError, TvmattendError
from tvmattend.target import host_target


class Fake:
    """The `ssh` on the path, and what it was called with."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = directory / "ssh"
        script = Path(__file__).with_name("fake_ssh.py")
        program.write_text(f"#!{sys.executable}\n{script.read_text()}")
        program.chmod(0o755)
        self._log = directory / "calls"
        self._patch = monkeypatch
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SSH_LOG", str(self._log))

    def behaves(self, mode: str) -> None:
        self._patch.setenv("FAKE_SSH", mode)

    def calls(self) -> list[list[str]]:
        """The arguments of each start."""
        return [json.loads(line)[1:] for line in self._log.read_text().splitlines()]

    def running(self) -> list[int]:
        """Processes of it that have not ended."""
        pids = [json.loads(line)[0] for line in self._log.read_text().splitlines()]
        return [pid for pid in pids if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    (tmp_path / "bin").mkdir()
    return Fake(tmp_path / "bin", monkeypatch)


def port_of(address: str) -> int:
    return parse_endpoint(address).port


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    over = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < over, "it did not come to it"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://pi@pi4", SshAddress("pi4", "pi")),
        ("ssh://pi4", SshAddress("pi4")),
        ("ssh://pi4/", SshAddress("pi4")),
        ("ssh://pi@192.168.0.4:2222", SshAddress("192.168.0.4", "pi", 2222)),
        ("ssh://pi4/9091", SshAddress("pi4", rpc_port=9091)),
        ("ssh://me@[fe80::1]:22/9091", SshAddress("fe80::1", "me", 22, 9091)),
    ],
)
def test_addresses(text: str, address: SshAddress) -> None:
    assert parse_ssh(text) == address
    assert parse_ssh(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@pi4", "ssh://pi4 ; ls", "ssh://pi4:0",
        "ssh://pi4:70000", "ssh://pi4/x", "ssh://pi4/9090/x", "ssh://a@b@c", "ssh://$(x)",
        "ssh://pi4\nx", "ssh://[pi4]", "SSH//pi4", "ssh://pi4:22:33",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str, ssh: Fake) -> None:
    with pytest.raises(BoardUnreachableError, match="is not an address of a board") as caught:
        parse_ssh(text)
    assert "ssh://USER@HOST" in caught.value.hint


def test_a_plain_address_needs_no_tunnel() -> None:
    with reached("pi4:9091") as place:
        assert place == Endpoint("pi4", 9091)


def test_a_board_is_reached_and_called_by_its_name(ssh: Fake, host_board: str) -> None:
    name = f"ssh://pi@pi4:2222/{port_of(host_board)}"
    with reached(name) as place:
        assert str(place) == name
        assert probe(place, host_target()).endpoint == name
        (words,) = ssh.calls()
        near = words[words.index("-L") + 1]
        assert near == f"127.0.0.1:{place.port}:127.0.0.1:{port_of(host_board)}"
    assert words[-6:] == ["-l", "pi", "-p", "2222", "--", "pi4"]
    for option in ("BatchMode=yes", "ExitOnForwardFailure=yes", "ControlPath=none"):
        assert words[words.index(option) - 1] == "-o"
    until(lambda: not ssh.running())


@pytest.mark.parametrize(
    ("mode", "message", "hint"),
    [
        ("denied", "refused the login", "`ssh pi@pi4` must work without one"),
        ("unknown", "host key is not known", "log in once by hand"),
        ("changed", "is not the one that is known", "ssh-keygen -R pi4"),
        ("unresolved", "does not resolve", "spelling"),
        ("refused", "no SSH server", "sshd"),
        ("silent", "no answer", "on"),
        ("strange", "Connection reset by peer", "`ssh pi@pi4`"),
        ("mute", "ssh ended without a word", "`ssh pi@pi4`"),
        ("prohibited", "forwards no ports", "AllowTcpForwarding"),
    ],
)
def test_what_ssh_says_is_one_line_and_a_hint(
    ssh: Fake, mode: str, message: str, hint: str
) -> None:
    ssh.behaves(mode)
    with pytest.raises(BoardUnreachableError, match=message) as caught, reached("ssh://pi@pi4"):
        pytest.fail("there is no way there")
    assert hint in caught.value.hint
    assert str(caught.value).startswith("ssh://pi@pi4: ")
    assert "\n" not in str(caught.value)
    until(lambda: not ssh.running())


def test_a_tunnel_without_a_server_behind_it(ssh: Fake, closed_port: str) -> None:
    port = port_of(closed_port)
    with (
        pytest.raises(BoardUnreachableError, match=f"nothing serves .* 127.0.0.1:{port}") as caught,
        reached(f"ssh://pi4/{port}"),
    ):
        pytest.fail("there is no server")
    assert f"tvmattend device --port {port}" in caught.value.hint
    until(lambda: not ssh.running())


def test_a_tunnel_to_another_program(ssh: Fake, ssh_port: str) -> None:
    with (
        pytest.raises(BoardUnreachableError, match="is no TVM RPC server"),
        reached(f"ssh://pi4/{port_of(ssh_port)}"),
    ):
        pytest.fail("that is no server")


def test_an_ssh_that_hangs_is_given_up(ssh: Fake) -> None:
    ssh.behaves("hangs")
    start = time.monotonic()
    with (
        pytest.raises(BoardUnreachableError, match="did not log in in time"),
        Tunnel(SshAddress("pi4"), deadline=1.0),
    ):
        pytest.fail("there is no tunnel")
    assert time.monotonic() - start < 6
    until(lambda: not ssh.running())


def test_without_ssh_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(ToolMissingError, match="there is no `ssh`") as caught,
        reached("ssh://pi4"),
    ):
        pytest.fail("without ssh")
    assert "openssh-client" in caught.value.hint


def test_a_port_that_another_took_is_tried_again(ssh: Fake, host_board: str) -> None:
    ssh.behaves("taken")
    with reached(f"ssh://pi4/{port_of(host_board)}"):
        assert len(ssh.calls()) == 2


def test_a_tunnel_that_breaks_is_built_again_on_the_same_port(
    ssh: Fake, host_board: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "_WAITS", (0.1,))
    with reached(f"ssh://pi4/{port_of(host_board)}") as place:
        (first,) = ssh.running()
        os.kill(first, signal.SIGKILL)
        until(lambda: len(ssh.calls()) == 2)
        until(lambda: _accepts(place))
        assert probe(place, host_target()).machine
        one, two = ssh.calls()
        assert one == two
    until(lambda: not ssh.running())


def _exhausted(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def _no_processes(*_: object, **__: object) -> None:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize(
    ("popen", "kind", "message"),
    [
        (_exhausted, StorageError, "Too many open files"),
        (_no_processes, BoardUnreachableError, "cannot be started: Resource temporarily"),
    ],
)
def test_an_ssh_that_this_machine_cannot_start_is_told_at_once(
    ssh: Fake,
    monkeypatch: pytest.MonkeyPatch,
    popen: Callable[..., None],
    kind: type[TvmattendError],
    message: str,
) -> None:
    monkeypatch.setattr(tunnel.subprocess, "Popen", popen)
    start = time.monotonic()
    with pytest.raises(kind, match=message) as caught, Tunnel(SshAddress("pi4")):
        pytest.fail("there is no tunnel")
    assert "ulimit" in caught.value.hint
    assert time.monotonic() - start < 6


def test_a_tunnel_that_cannot_be_built_again_is_tried_until_it_can(
    ssh: Fake, host_board: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tunnel, "_WAITS", (0.1,))
    with reached(f"ssh://pi4/{port_of(host_board)}") as place:
        with monkeypatch.context() as patch:
            patch.setattr(tunnel.subprocess, "Popen", _exhausted)
            os.kill(ssh.running()[0], signal.SIGKILL)
            until(lambda: caplog.text.count("cannot be started: Too many open files") > 1)
        until(lambda: len(ssh.calls()) == 2)
        until(lambda: _accepts(place))


def _accepts(place: Endpoint) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((place.host, place.port), 1).close()
        return True
    return False


_HOLD = """
import sys, time
from tvmattend.device.tunnel import reached
with reached(sys.argv[1]):
    print("open", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(address: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, address], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_tunnel_ends_with_us_however_we_end(
    ssh: Fake, host_board: str, number: signal.Signals
) -> None:
    with holder(f"ssh://pi4/{port_of(host_board)}") as process:
        (pid,) = ssh.running()
        process.send_signal(number)
        process.wait(20)
        until(lambda: not is_running(pid))
