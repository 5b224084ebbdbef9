# SPDX-License-Identifier: Apache-2.0
"""Where a board is, and a session with it: over a plain RPC server or through a tracker.

TVM's own client connects and reads without a timeout, in C++. Here a host that is off, a port that
says nothing and a board that is busy are each an error of one line after some seconds.
"""

import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from tvmattend.device.serving import wire
from tvmattend.errors import BoardUnreachableError, NoFreeBoardError

SERVER_PORT = 9090
TRACKER_PORT = 9190

_HOW_TO_SERVE = (
    "on the board run `tvmattend device` and give --rpc ssh://USER@HOST; or there, in a network "
    "that you trust, `tvmattend device --host 0.0.0.0 --insecure`, `python -m tvm.exec.rpc_server`"
)
_HOW_TO_TRACK = "start a tracker with `python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190`"

_TRACKER_SECONDS = 10.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Endpoint:
    """An address to get a session from; a plain value that travels to worker processes.

    Attributes:
        host: Name or address.
        port: TCP port of the server or the tracker.
        key: The boards to ask a tracker for; empty means that this is a server, not a tracker.
        name: What to call it where host and port are only the near end of a tunnel.
    """

    host: str
    port: int
    key: str = ""
    name: str = ""

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.name:
            return self.name
        return f"`{self.key}` at tracker {self.address}" if self.key else self.address


def parse_endpoint(text: str, default_port: int = SERVER_PORT) -> Endpoint:
    """Understand `pi4:9090`, `pi4`, `192.168.0.4`, `[fe80::1]:9090` or `::1`.

    Raises:
        BoardUnreachableError: It is none of these.
    """
    host, port = _split(text.strip(), text, default_port)
    return Endpoint(host, port)


def tracker_endpoint(text: str, key: str) -> Endpoint:
    """Understand the address of a tracker (default port 9190) and the key of the boards.

    Raises:
        BoardUnreachableError: The address is none, or the key is empty.
    """
    if not key.strip() or len(key.split()) > 1 or ":" in key:
        raise BoardUnreachableError(
            f"`{key}` is not a key of boards at a tracker",
            "give the name that the boards registered with (`tvmattend device --key NAME`)",
        )
    host, port = _split(text.strip(), text, TRACKER_PORT)
    return Endpoint(host, port, key.strip())


def connect(endpoint: Endpoint, timeout: float = 10.0, session_timeout: float = 0) -> Any:
    """Open a session.

    Args:
        endpoint: A server or a tracker.
        timeout: Seconds for each step: reaching the host, waiting for a free board, the greeting.
        session_timeout: Seconds after which the *server* ends the session; 0 means never.

    Returns:
        A `tvm.rpc.RPCSession`. The board serves nobody else until it is closed (`close_session`).

    Raises:
        BoardUnreachableError: Nothing answers there, or not as a TVM RPC server.
        NoFreeBoardError: The tracker has no board of that key, or none becomes free.
    """
    if endpoint.key:
        host, port, match_key = request_board(endpoint, timeout)
        return open_session(Endpoint(host, port), match_key, timeout, session_timeout)
    return open_session(endpoint, "", timeout, session_timeout)


def open_session(
    board: Endpoint, match_key: str, timeout: float = 10.0, session_timeout: float = 0
) -> Any:
    """Open a session with a server, with the match key that a tracker gave for it if one did.

    The arguments, result and errors are those of `connect`.
    """
    if not match_key:
        check_reachable(board, timeout)
    from tvm import rpc  # before the clock runs: the first time it takes seconds

    def ask() -> Any:
        return rpc.connect(board.host, board.port, match_key, session_timeout)

    try:
        return within(timeout, ask, close_session)
    except TimeoutError as error:
        raise BoardUnreachableError(
            f"{board}: the port is open, but no TVM RPC server answered within {timeout:g} s",
            "it may be serving another client (one at a time), or be another program; "
            + _HOW_TO_SERVE,
        ) from error
    except RuntimeError as error:  # what TVM's client raises
        raise BoardUnreachableError(
            f"{board}: the port is open, but it is no TVM RPC server, or one that has just ended: "
            f"{reason(error)}",
            f"check the port; {_HOW_TO_SERVE}",
        ) from error


def close_session(session: Any) -> None:
    """Close a session now; left to itself, it ends when the last remote object is collected.

    TVM 0.27 crashes when one thread closes a session in which another waits for a call.
    """
    from tvm.error import RPCError

    # A server that is gone, or that ended the session, leaves nothing to close.
    with contextlib.suppress(RPCError, RuntimeError, AttributeError):
        session.get_function("CloseRPCConnection")()


def check_reachable(endpoint: Endpoint, timeout: float = 10.0) -> None:
    """Open and close a TCP connection; needs no TVM, so it can come before everything else.

    Raises:
        BoardUnreachableError: The name does not resolve, or nothing accepts in time.
    """
    _tcp(endpoint, timeout).close()


def check_tracker(endpoint: Endpoint) -> None:
    """Greet a tracker, before a board is started that is to register there; needs no TVM.

    Raises:
        BoardUnreachableError: The tracker does not answer, or is none.
    """
    with _tcp(endpoint, _TRACKER_SECONDS) as connection, _spoken_to(endpoint):
        wire.greet_tracker(connection)


def tracker_summary(endpoint: Endpoint, timeout: float = 10.0) -> Any:
    """What a tracker knows: `server_info` of its boards and `queue_info` of their keys; no TVM.

    Raises:
        BoardUnreachableError: The tracker does not answer, or is none.
    """
    with _tcp(endpoint, timeout, tracker=True) as connection, _spoken_to(endpoint):
        wire.greet_tracker(connection)
        return wire.ask_tracker(connection, [wire.TRACKER_SUMMARY])[1]


def request_board(endpoint: Endpoint, timeout: float = 10.0) -> tuple[str, int, str]:
    """Ask a tracker for a free board; needs no TVM.

    Returns:
        Host, port and match key of the board. The key is good for one session.

    Raises:
        BoardUnreachableError: The tracker does not answer, or is none.
        NoFreeBoardError: It has no board of that key, or none becomes free in time.
    """
    with _tcp(endpoint, timeout) as connection, _spoken_to(endpoint):
        wire.greet_tracker(connection)
        status = wire.ask_tracker(connection, [wire.TRACKER_SUMMARY])[1]
        registered = [str(entry.get("key", "")) for entry in status["server_info"]]
        boards = [key.removeprefix("server:") for key in registered]
        if endpoint.key not in boards:
            others = ", ".join(sorted(set(boards)))
            raise NoFreeBoardError(
                f"tracker {endpoint.address} has no board `{endpoint.key}`",
                f"its boards: {others}"
                if others
                else "no board is registered there; "
                "on the board run `tvmattend device --tracker HOST:PORT --key NAME`",
            )
        connection.settimeout(timeout)
        count = boards.count(endpoint.key)
        host, port, match_key = _wait_for_board(connection, endpoint, count)[1]
        if not str(match_key).isprintable():  # it is sent as UTF-8, which not every text can be
            raise ValueError(f"match key {match_key!r}")
        return *given_address(host, port), str(match_key)


def given_address(host: Any, port: Any) -> tuple[str, int]:
    """Host and port of a board as a tracker gives them, which has them from the board.

    Raises:
        ValueError, TypeError: They are none.
    """
    try:
        found = parse_endpoint(Endpoint(host, port).address)
    except BoardUnreachableError as error:
        raise ValueError(str(error)) from error
    return found.host, found.port


@contextlib.contextmanager
def _spoken_to(endpoint: Endpoint) -> Iterator[None]:
    """What does not talk as a tracker does is none."""
    try:
        yield
    except (
        OSError,
        wire.ProtocolError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise BoardUnreachableError(
            f"{endpoint.address} accepts connections, but is no TVM RPC tracker: {error}",
            f"check the address of the tracker; {_HOW_TO_TRACK}",
        ) from error


def _wait_for_board(connection: socket.socket, endpoint: Endpoint, count: int) -> Any:
    try:
        return wire.ask_tracker(connection, [wire.TRACKER_REQUEST, endpoint.key, "", 1])
    except TimeoutError as error:
        raise NoFreeBoardError(
            f"tracker {endpoint.address}: no `{endpoint.key}` became free within "
            f"{connection.gettimeout():g} s ({count} registered)",
            "wait for the other user, or register another board",
        ) from error


def within(
    seconds: float,
    action: Callable[[], _Result],
    discard: Callable[[_Result], None],
) -> _Result:
    """Run something that cannot be given a timeout.

    It runs in a thread, because TVM's client blocks in C++; that thread is left behind when the
    time is over.

    Args:
        seconds: How long to wait.
        action: What to run.
        discard: Takes what comes too late.

    Raises:
        TimeoutError: It took longer.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []
    finished = threading.Event()
    lock = threading.Lock()
    abandoned = False

    def run() -> None:
        try:
            result = action()
            with lock:
                late = abandoned
                results.append(result)
            if late:
                discard(result)
        except BaseException as error:  # noqa: BLE001  (handed to the caller, below)
            errors.append(error)
        finished.set()

    thread = threading.Thread(target=run, daemon=True, name="tvmattend-board")
    try:
        thread.start()
        finished.wait(seconds)
    finally:  # Ctrl-C leaves the call behind as a timeout does
        with lock:
            abandoned = not results and not errors
    if abandoned:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]


def _tcp(endpoint: Endpoint, timeout: float, tracker: bool = False) -> socket.socket:
    tracker = tracker or bool(endpoint.key)
    remedy = _HOW_TO_TRACK if tracker else _HOW_TO_SERVE
    place = f"tracker {endpoint.address}" if tracker else endpoint.address
    try:
        connection = socket.create_connection((endpoint.host, endpoint.port), timeout)
    except socket.gaierror as error:
        raise BoardUnreachableError(
            f"{place}: the name does not resolve ({error.strerror})",
            "check the spelling, or give an IP address",
        ) from error
    except TimeoutError as error:
        raise BoardUnreachableError(
            f"{place}: no answer to a TCP connection within {timeout:g} s",
            f"is the machine on, and no firewall in between? {remedy}",
        ) from error
    except OSError as error:
        raise BoardUnreachableError(
            f"{place}: TCP connection failed: {error.strerror or error}", remedy
        ) from error
    return connection


def _split(word: str, text: str, default_port: int) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::([0-9]{1,5}))?", word)
    # Python cannot even ask for a name with a part that is empty or has more than 63 characters.
    named = re.fullmatch(r"((?:[\w-]{1,63}\.)*[\w-]{1,63}\.?)(?::([0-9]{1,5}))?", word, re.ASCII)
    host, port = word, default_port
    if (match := bracketed or named) is not None:
        host, port = match[1], int(match[2] or default_port)
    # What is in brackets, or has no port because it has colons of its own, is IPv6.
    good = named is not None or _is_ipv6(host)
    if not good or not 0 < port < 65536:
        raise BoardUnreachableError(
            f"`{text}` is not an address of a board",
            f"write HOST or HOST:PORT, e.g. `pi4:{default_port}`",
        )
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def reason(error: Exception) -> str:
    """Of what TVM's client raises, which has traces of C++ in it, the line that says it."""
    if "kShutdown" in str(error):  # on a connection that was closed under a call
        return "the session's process died"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
