# SPDX-License-Identifier: Apache-2.0
"""The server outlives whatever its clients do, and leaves nothing behind."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tvmattend.device.asking import ask_board, registered
from tvmattend.device.endpoint import Endpoint, close_session, connect, parse_endpoint
from tvmattend.device.process import ServerOptions, ServerProcess, listen, serve_here
from tvmattend.device.serving import sessions
from tvmattend.device.serving.status import FAILED
from tvmattend.device.serving.tracker import Registration
from tvmattend.device.serving.wire import BOARD_FUNCTION, RPC_MAGIC, RPC_SUCCESS
from tvmattend.errors import BoardUnreachableError, PortError
from tvmattend.target import TargetSpec, host_target


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    log = tmp_path / "server.log"
    with serve_here(ServerOptions(verbose=True, start_seconds=30), log) as running:
        yield running


def place(server: ServerProcess) -> Endpoint:
    return parse_endpoint(server.address)


def works(server: ServerProcess, timeout: float = 5) -> bool:
    session = connect(place(server), timeout)
    told = str(session.get_function(BOARD_FUNCTION)())
    close_session(session)
    return '"machine"' in told


def children(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.pid).children(recursive=True)


def settle(server: ServerProcess) -> None:
    deadline = time.monotonic() + 5
    while children(server) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<ii", RPC_MAGIC, 2) + b"\xff\xff",  # ends TVM's own server
        struct.pack("<ii", RPC_MAGIC, 0),
        struct.pack("<ii", RPC_MAGIC, -1),
        struct.pack("<ii", RPC_MAGIC, 1 << 30),
        struct.pack("<ii", RPC_MAGIC, 1) + b" ",
    ],
)
def test_bad_greetings_do_not_end_it(server: ServerProcess, greeting: bytes) -> None:
    with socket.create_connection((server.host, server.port)) as client:
        client.sendall(greeting)
    assert works(server)


def test_a_silent_client_is_turned_away(server: ServerProcess) -> None:
    with socket.create_connection((server.host, server.port)):
        assert works(server, timeout=10)


def test_a_crash_ends_one_session_only(
    server: ServerProcess, misbehaving: Callable[[TargetSpec], Path]
) -> None:
    session = connect(place(server))
    session.upload(bytearray(misbehaving(host_target()).read_bytes()), "crash.so")
    module = session.load_module("crash.so")
    with pytest.raises(RuntimeError):
        module["crash"]()
    assert works(server)


def test_a_session_that_dies_of_a_signal_without_a_name_ends_alone(
    server: ServerProcess, tmp_path: Path
) -> None:
    session = connect(place(server))
    (child,) = children(server)
    child.send_signal(signal.SIGRTMIN + 1)
    assert works(server)
    close_session(session)
    status = ask_board(server.host, server.port)
    assert status is not None
    assert status.ended[1] == f"died of signal {signal.SIGRTMIN + 1}"
    assert status.ended[1] in (tmp_path / "server.log").read_text()


def test_a_session_may_print_as_much_as_it_likes(
    server: ServerProcess, misbehaving: Callable[[TargetSpec], Path], tmp_path: Path
) -> None:
    session = connect(place(server), session_timeout=10)
    session.upload(bytearray(misbehaving(host_target()).read_bytes()), "loud.so")
    session.load_module("loud.so")["loud"]()
    close_session(session)
    assert (tmp_path / "server.log").read_text().count("x") > 1 << 17


def test_a_session_ends_at_the_limit_that_the_client_set(
    server: ServerProcess, misbehaving: Callable[[TargetSpec], Path]
) -> None:
    session = connect(place(server), session_timeout=0.5)
    session.upload(bytearray(misbehaving(host_target()).read_bytes()), "forever.so")
    module = session.load_module("forever.so")
    with pytest.raises(RuntimeError, match="RPCSessionTimeoutError"):
        module["forever"]()
    assert works(server)
    settle(server)
    assert children(server) == []


def test_a_client_that_stopped_reading_is_not_told_of_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(sessions, "_function", lambda _: lambda *words: told.append(words))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sessions._tell_timeout(ours, 8.0)
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16))
        ours.setblocking(True)
        sessions._tell_timeout(ours, 8.0)
    assert [words for _, words in told] == ["RPCSessionTimeoutError: the session's 8 s are over"]


@pytest.mark.parametrize("timeout", ["-1", "0", "nan", "inf", "1e400", "x", ""])
def test_a_limit_that_is_none_is_refused(server: ServerProcess, timeout: str) -> None:
    key = f"client: -timeout={timeout}".encode()
    with socket.create_connection((server.host, server.port), 5) as client:
        client.sendall(struct.pack("<ii", RPC_MAGIC, len(key)) + key)
        assert client.recv(4) == b""
    assert works(server)


def test_a_limit_beyond_what_linux_can_wait_is_a_week(server: ServerProcess) -> None:
    session = connect(place(server), session_timeout=1e18)
    assert session.get_function(BOARD_FUNCTION)()
    close_session(session)
    assert works(server)


_CLIENT_IN_A_KERNEL = """
import sys
from tvmattend.device.endpoint import connect, parse_endpoint
session = connect(parse_endpoint(sys.argv[1]))
session.upload(bytearray(open(sys.argv[2], "rb").read()), "forever.so")
module = session.load_module("forever.so")
print("in", flush=True)
module["forever"]()
"""


def test_a_client_that_dies_in_a_kernel_frees_the_board(
    server: ServerProcess, misbehaving: Callable[[TargetSpec], Path]
) -> None:
    library = str(misbehaving(host_target()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _CLIENT_IN_A_KERNEL, server.address, library]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"in\n"
        time.sleep(0.2)
        client.kill()
    assert works(server, timeout=10)
    settle(server)
    assert children(server) == []


def test_sessions_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = tmp_path / "sessions"
    directories.mkdir()
    monkeypatch.setenv("TMPDIR", str(directories))

    def sessions(count: int) -> None:
        for _ in range(count):
            session = connect(place(server))
            session.upload(bytearray(100_000), "data.bin")
            assert len(session.download("data.bin")) == 100_000
            close_session(session)
        settle(server)

    with serve_here(ServerOptions(), tmp_path / "log") as server:
        process = psutil.Process(server.pid)
        sessions(5)
        memory, files = process.memory_info().rss, process.num_fds()
        sessions(60)
        assert children(server) == []  # zombies would be here
        deadline = time.monotonic() + 5  # the last session may still be ending
        while process.num_fds() > files and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.num_fds() <= files  # and another may have been at the first count
        assert process.memory_info().rss - memory < 2_000_000
        assert list(directories.iterdir()) == []


def test_a_session_that_has_no_room_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories, away = tmp_path / "sessions", tmp_path / "away"
    directories.mkdir()
    monkeypatch.setenv("TMPDIR", str(directories))
    log = tmp_path / "log"
    with serve_here(ServerOptions(), log) as server:
        running = connect(place(server))
        with socket.create_connection(("127.0.0.1", server.port)) as waiting:
            waiting.sendall(struct.pack("<ii", RPC_MAGIC, 7) + b"client:")
            while not (status := ask_board("127.0.0.1", server.port)) or not status.busy:
                time.sleep(0.02)
            directories.rename(away)
            close_session(running)
            assert waiting.recv(4) == struct.pack("<i", RPC_SUCCESS)
            while waiting.recv(1 << 10):
                pass
        status = ask_board("127.0.0.1", server.port)
        assert status is not None
        assert not status.busy
        assert status.ended[2] == FAILED
        away.rename(directories)
        assert works(server)
    assert "cannot serve a client: " in log.read_text()


def test_each_session_has_a_directory_of_its_own(server: ServerProcess) -> None:
    session = connect(place(server))
    session.upload(bytearray(b"one"), "file")
    close_session(session)
    session = connect(place(server))
    with pytest.raises(RuntimeError):
        session.download("file")
    close_session(session)


def test_a_tar_says_that_boards_do_not_link(server: ServerProcess) -> None:
    session = connect(place(server))
    session.upload(bytearray(b"x"), "model.tar")
    with pytest.raises(RuntimeError, match=r"link to a \.so on the client"):
        session.load_module("model.tar")
    close_session(session)


def test_stopping_ends_a_session_in_a_kernel(
    tmp_path: Path, misbehaving: Callable[[TargetSpec], Path]
) -> None:
    server = serve_here(ServerOptions(), tmp_path / "log")
    library = str(misbehaving(host_target()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _CLIENT_IN_A_KERNEL, server.address, library]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"in\n"
        inside = children(server)
        assert inside
        server.stop()
        assert client.wait(10) != 0  # its call failed; it did not hang
    assert not [process for process in inside if process.is_running()]
    server.stop()  # a second time is nothing


def test_ports_that_cannot_be_served_on(server: ServerProcess) -> None:
    with pytest.raises(PortError, match=rf"127\.0\.0\.1:{server.port}: Address already in use"):
        serve_here(ServerOptions(port=server.port))
    with pytest.raises(PortError, match="is not a port"):
        listen("127.0.0.1", 70000)
    with pytest.raises(PortError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_the_address_that_a_tracker_gives_out_arrives_as_it_is(tracker: Endpoint) -> None:
    for host in ("pi4", "::1", "2001:db8::1:5"):
        with serve_here(ServerOptions(tracker=tracker, advertise=(host, 9091))):
            assert registered(tracker)[0] == [("pi4", host, 9091)]


def test_a_tracker_that_answers_nonsense_is_lost_and_looked_for(
    tracker: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Registration((tracker.host, tracker.port), "pi4", ("pi4", 9090))
    entry.open()
    for answer in (7, None, "nothing"):
        with monkeypatch.context() as garbled:
            garbled.setattr("tvmattend.device.serving.tracker.ask_tracker", lambda *_, a=answer: a)
            entry.keep()
        assert "lost the tracker" in capsys.readouterr().err
        entry.keep()
        assert registered(tracker)[0] == [("pi4", "pi4", 9090)]
    entry.lost(OSError("the test is over"))


def test_a_server_that_cannot_start_leaves_no_file_open() -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(FileNotFoundError):
        ServerProcess(["/nowhere/python"], {}, ServerOptions())
    assert psutil.Process().num_fds() == before


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(BoardUnreachableError, match=r"no .*libtvm_runtime\.so") as caught:
        ServerProcess(
            [sys.executable],
            {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            ServerOptions(),
            runtime=tmp_path,
            log=tmp_path / "log",
        )
    assert str(tmp_path / "log") in caught.value.hint
    with pytest.raises(BoardUnreachableError, match=r"was not ready after 0\.2 s") as caught:
        ServerProcess(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            dict(os.environ),
            ServerOptions(start_seconds=0.2),
        )
    assert "busy" in caught.value.hint
    tracker = Endpoint("127.0.0.1", 9, "pi4")
    with pytest.raises(BoardUnreachableError, match=r"tracker 127\.0\.0\.1:9: .*refused"):
        serve_here(ServerOptions(tracker=tracker), tmp_path / "log")
