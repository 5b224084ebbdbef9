# SPDX-License-Identifier: Apache-2.0
"""Addresses, and everything that can be wrong with what is there."""

import math
import pickle
import socket
import time
from dataclasses import replace

import pytest

from tvmattend.device.endpoint import (
    Endpoint,
    check_reachable,
    check_tracker,
    close_session,
    connect,
    parse_endpoint,
    reason,
    tracker_endpoint,
    within,
)
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.device.serving import wire
from tvmattend.errors import BoardUnreachableError, NoFreeBoardError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("pi4", "pi4", 9090),
        ("pi4:9091", "pi4", 9091),
        (" 192.168.0.4:80 ", "192.168.0.4", 80),
        ("[fe80::1]:9090", "fe80::1", 9090),
        ("[::1]", "::1", 9090),
        ("::1", "::1", 9090),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    endpoint = parse_endpoint(text)
    assert endpoint == Endpoint(host, port)
    assert parse_endpoint(endpoint.address) == endpoint
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint  # noqa: S301


@pytest.mark.parametrize(
    "text",
    [
        *("", ":9090", "pi4:", "pi4:x", "pi4:0", "pi4:65536", "a b", "a:1:2"),
        *("pi4..lan", "a" * 64, "pi4:٣", "pi4:" + "9" * 5000),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BoardUnreachableError, match="is not an address of a board"):
        parse_endpoint(text)


def test_trackers_have_a_port_and_a_key_of_their_own() -> None:
    endpoint = tracker_endpoint("farm", "pi4")
    assert (endpoint.port, endpoint.key) == (9190, "pi4")
    assert str(endpoint) == "`pi4` at tracker farm:9190"
    for key in ("", "two words", "server:pi4"):
        with pytest.raises(BoardUnreachableError, match="is not a key"):
            tracker_endpoint("farm", key)


def test_nothing_listens_there(closed_port: str) -> None:
    with pytest.raises(BoardUnreachableError, match=closed_port) as caught:
        connect(parse_endpoint(closed_port))
    assert "refused" in str(caught.value)
    assert "tvmattend device --host" in caught.value.hint


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(BoardUnreachableError, match=r"no-such-board\.invalid:9090"):
        check_reachable(parse_endpoint("no-such-board.invalid"))


def test_a_host_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(address: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silence)
    with pytest.raises(BoardUnreachableError, match=r"pi4:9090: no answer .* within 0\.5 s"):
        check_reachable(parse_endpoint("pi4"), timeout=0.5)


def test_a_port_that_says_nothing_does_not_hang(silent_port: str) -> None:
    from tvm import rpc  # before the clock runs: the first time it takes seconds

    del rpc
    started = time.monotonic()
    with pytest.raises(BoardUnreachableError, match=r"no TVM RPC server answered within 0\.5 s"):
        connect(parse_endpoint(silent_port), timeout=0.5)
    assert time.monotonic() - started < 5


def test_a_port_that_speaks_something_else(ssh_port: str) -> None:
    with pytest.raises(BoardUnreachableError, match="it is no TVM RPC server"):
        connect(parse_endpoint(ssh_port), timeout=5)


def test_a_tracker_that_is_none(ssh_port: str, closed_port: str, silent_port: str) -> None:
    with pytest.raises(BoardUnreachableError, match="is no TVM RPC tracker"):
        connect(tracker_endpoint(ssh_port, "pi4"), timeout=2)
    with pytest.raises(BoardUnreachableError, match="is no TVM RPC tracker"):
        connect(tracker_endpoint(silent_port, "pi4"), timeout=0.3)
    with pytest.raises(BoardUnreachableError, match="refused") as caught:
        connect(tracker_endpoint(closed_port, "pi4"), timeout=2)
    assert "python -m tvm.exec.rpc_tracker" in caught.value.hint


@pytest.mark.parametrize(
    "answer",
    [
        *([1, "refused"], [0, ["h", "x", "k"]], [0], 7, {}),
        *([0, ["h..h", 1, "k"]], [0, ["h", math.inf, "k"]], [0, ["h", 1, "\ud800"]]),
    ],
)
def test_a_tracker_that_gives_no_board_but_nonsense(
    answer: object, silent_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = [0, {"server_info": [{"key": "server:pi4"}], "queue_info": {}}]
    answers = iter([summary, answer])
    monkeypatch.setattr(wire, "greet_tracker", lambda _: None)
    monkeypatch.setattr(wire, "ask_tracker", lambda *_: next(answers))
    with pytest.raises(BoardUnreachableError, match="is no TVM RPC tracker"):
        connect(tracker_endpoint(silent_port, "pi4"), timeout=2)


def test_an_unreachable_tracker_is_not_taken_for_a_board(closed_port: str) -> None:
    for check in (check_reachable, check_tracker):
        with pytest.raises(BoardUnreachableError, match=f"tracker {closed_port}: ") as caught:
            check(tracker_endpoint(closed_port, "pi4"))
        assert "python -m tvm.exec.rpc_tracker" in caught.value.hint
        assert "tvmattend device" not in caught.value.hint


def test_a_busy_board_is_not_waited_for_for_ever(host_board: str) -> None:
    first = connect(parse_endpoint(host_board))
    try:
        with pytest.raises(BoardUnreachableError, match="no TVM RPC server answered") as caught:
            connect(parse_endpoint(host_board), timeout=0.5)
        assert "another client" in caught.value.hint
    finally:
        close_session(first)
    # The one that gave up gets its turn now, and must not keep it.
    close_session(connect(parse_endpoint(host_board), timeout=5))


def test_boards_from_a_tracker(tracker: Endpoint) -> None:
    with pytest.raises(NoFreeBoardError, match="has no board `pi4`") as caught:
        connect(tracker, timeout=2)
    assert "no board is registered" in caught.value.hint

    with serve_here(ServerOptions(tracker=tracker)):
        for _ in range(2):  # a board comes back after each session
            session = connect(tracker, timeout=5)
            assert "machine" in str(session.get_function("tvmattend.board")())
            with pytest.raises(NoFreeBoardError, match=r"no `pi4` became free .*1 registered"):
                connect(tracker, timeout=0.5)
            close_session(session)
        with pytest.raises(NoFreeBoardError) as caught:
            connect(replace(tracker, key="pi5"), timeout=2)
        assert "pi4" in caught.value.hint


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Traceback:\n  a.cc:1\nInternalError: no such file\n\n", "InternalError: no such file"),
        ("a.cc:2: Check failed: (code != RPCCode::kShutdown)\n", "the session's process died"),
        ("", "RuntimeError"),
    ],
)
def test_what_tvms_client_raises_is_one_line(said: str, line: str) -> None:
    assert reason(RuntimeError(said)) == line


def test_within_hands_over_results_errors_and_what_comes_late() -> None:
    late: list[object] = []
    assert within(1, lambda: 7, late.append) == 7
    with pytest.raises(ZeroDivisionError):
        within(1, lambda: 1 // 0, late.append)

    def slow() -> str:
        time.sleep(0.2)
        return "late"

    with pytest.raises(TimeoutError):
        within(0.05, slow, late.append)
    time.sleep(0.4)
    assert late == ["late"]
