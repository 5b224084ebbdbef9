# SPDX-License-Identifier: Apache-2.0
"""The accept loop, and a forked process for each session."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import select
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .status import CLOSED, FAILED, LEFT, LIMIT, Status, ending
from .tracker import Registration
from .wire import (
    ASK_MAGIC,
    CONDITIONS_FUNCTION,
    SESSION_FUNCTION,
    ProtocolError,
    first_word,
    handshake,
    receive_int,
    send_json,
)

_HANDSHAKE_SECONDS = 5.0
_PING_SECONDS = 2.0
_PAUSE_SECONDS = 0.5
_GRACE_SECONDS = 2.0
_QUESTION_SECONDS = 1.0
# Clients that are let in during a session, to see whether they only ask; more wait outside.
_WAITING = 16


class Server:
    """The accept loop.

    Args:
        listener: A listening socket.
        lifeline: A file descriptor whose end of file means "stop"; None for none.
        registration: Entry at a tracker, open; None to serve whoever connects.
        status: What it answers to whoever asks, also during a session.
        verbose: Log every session, and let TVM's own messages through.
    """

    def __init__(
        self,
        listener: socket.socket,
        lifeline: int | None,
        registration: Registration | None,
        status: Status,
        verbose: bool,
    ) -> None:
        self._listener = listener
        self._lifeline = [] if lifeline is None else [lifeline]
        self._registration = registration
        self._status = status
        self._verbose = verbose
        self._waiting: list[tuple[socket.socket, str]] = []

    def run(self) -> None:
        """Serve until the lifeline ends."""
        pause = None if self._registration is None else _PING_SECONDS
        while True:
            watched = [self._listener.fileno(), *self._lifeline]
            ready, _, _ = select.select(watched, [], [], 0 if self._waiting else pause)
            if set(ready) & set(self._lifeline):
                return
            try:
                if self._waiting:
                    self._serve(*self._waiting.pop(0))
                elif ready:
                    self._serve(*self._accept())
                elif self._registration is not None:
                    self._registration.keep()
            except OSError as error:  # no descriptor, process or room in /tmp left: it may pass
                log(f"cannot serve a client: {error}")
                time.sleep(_PAUSE_SECONDS)

    def _accept(self) -> tuple[socket.socket, str]:
        connection, peer = self._listener.accept()
        return connection, f"{peer[0]}:{peer[1]}"

    def _serve(self, connection: socket.socket, name: str) -> None:
        with connection:
            try:
                if self._asked(connection):
                    return
                limit = self._greet(connection)
            except (OSError, ProtocolError) as error:
                log(f"{name}: turned away: {error}", self._verbose)
                return
            try:
                self._session(connection, f"session {self._status.begin()} from {name}", limit)
            except OSError:
                self._status.end(FAILED)
                raise
        if self._registration is not None:
            try:
                self._registration.offer()
            except (OSError, ProtocolError) as error:
                self._registration.lost(error)

    def _asked(self, connection: socket.socket) -> bool:
        """Answer a client that only asks; give whether it was one."""
        connection.settimeout(_HANDSHAKE_SECONDS)
        if not select.select([connection], [], [], _HANDSHAKE_SECONDS)[0]:
            raise ProtocolError("it said nothing")
        if first_word(connection) != ASK_MAGIC:
            return False
        self._answer(connection)
        return True

    def _greet(self, connection: socket.socket) -> float | None:
        """Begin a session; give its limit in seconds."""
        entry = self._registration
        match_key, server_key = ("", "") if entry is None else (entry.match_key, entry.key)
        limit = handshake(connection, match_key, server_key)
        connection.settimeout(None)  # TVM's loop in the child wants a blocking socket
        _watch_peer(connection)
        return limit

    def _session(self, connection: socket.socket, name: str, limit: float | None) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tvmattend-session-") as directory:
            child = multiprocessing.get_context("fork").Process(
                target=self._child, args=(connection, directory)
            )
            child.start()
            reason = "stop"
            try:
                reason = self._wait(child.sentinel, connection, limit)
                # A child that sees its client leave ends by itself, unless it is in a kernel.
                child.join(_GRACE_SECONDS if reason == "gone" else 0.1)
            finally:
                child.kill()
                child.join()
        code = child.exitcode or 0
        self._status.end(_how(reason, code))
        if reason == "timeout":
            # Now that the child cannot write in between.
            _tell_timeout(connection, limit)
            log(f"{name}: stopped after {limit:g} s, the limit that its client set")
        elif reason == "gone" and code == -signal.SIGKILL:
            log(f"{name}: its client left during a kernel; stopped that")
        elif reason == "end" and code != 0:
            log(f"{name}: its process {_how(reason, code)}")
        log(f"{name}: {time.monotonic() - started:.2f} s", self._verbose)

    def _wait(self, sentinel: int, connection: socket.socket, limit: float | None) -> str:
        """Wait for the end of a session: `end`, `gone` (its client), `timeout` or `stop`.

        Whoever asks for the status meanwhile is answered; other clients wait for their turn.
        """
        until = None if limit is None else time.monotonic() + limit
        unsorted: dict[int, tuple[socket.socket, str]] = {}
        while True:
            poll = select.poll()
            room = len(self._waiting) + len(unsorted) < _WAITING
            listener = [self._listener.fileno()] if room else []
            for descriptor in (sentinel, *self._lifeline, *listener, *unsorted):
                poll.register(descriptor, select.POLLIN)
            poll.register(connection, select.POLLRDHUP)
            left = None if until is None else max(0.0, until - time.monotonic()) * 1e3
            ready = {descriptor for descriptor, _ in poll.poll(left)}
            for descriptor in ready & set(listener):
                with contextlib.suppress(OSError):  # gone again, or no descriptor left
                    client = self._accept()
                    unsorted[client[0].fileno()] = client
                ready.discard(descriptor)
            for descriptor in ready & set(unsorted):
                self._sort(*unsorted.pop(descriptor))
                ready.discard(descriptor)
            if ready or (until is not None and time.monotonic() >= until):
                break
        self._waiting += unsorted.values()
        if sentinel in ready:
            return "end"
        if ready & set(self._lifeline):
            return "stop"
        return "gone" if ready else "timeout"

    def _sort(self, connection: socket.socket, name: str) -> None:
        """Answer a client that only asks; keep another for later."""
        try:
            if first_word(connection) == ASK_MAGIC:
                connection.settimeout(_QUESTION_SECONDS)
                with connection:
                    self._answer(connection)
            else:
                self._waiting.append((connection, name))
        except (OSError, ProtocolError):
            connection.close()

    def _answer(self, connection: socket.socket) -> None:
        receive_int(connection)
        send_json(connection, self._status.to_json())

    def _child(self, connection: socket.socket, directory: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _die_with_parent()
        self._listener.close()
        for waiting, _ in self._waiting:
            waiting.close()
        if not self._verbose:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        os.chdir(directory)
        _register_session(Path(directory))
        self._register_status()
        _function("rpc.ServerLoop")(connection.fileno())

    def _register_status(self) -> None:
        """Let the session's client ask for its number, and for the conditions."""
        import tvm_ffi

        session, status = json.dumps(self._status.session()), self._status
        tvm_ffi.register_global_func(SESSION_FUNCTION, lambda: session, override=True)
        tvm_ffi.register_global_func(
            CONDITIONS_FUNCTION, lambda: json.dumps(status.conditions()), override=True
        )


def _how(reason: str, code: int) -> str:
    """The end of a session in a word: see `status`."""
    if reason == "timeout":
        return LIMIT
    if reason == "gone":
        return LEFT
    if code == 0:
        return CLOSED
    return f"died of {ending(code)}" if code < 0 else f"ended with {code}"


def log(text: str, wanted: bool = True) -> None:
    """One line for a person, on stderr."""
    if wanted:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _register_session(directory: Path) -> None:
    """Define the functions that TVM's server defines in Python; uploads go to `directory`."""
    import tvm_ffi

    def work_path(name: str) -> str:
        return str(directory / name)  # an absolute name stays: clients read /proc and /sys

    def load_module(name: str) -> Any:
        path = directory / name
        if path.suffix != ".so":
            raise RuntimeError(f"{name}: this board has no linker; link to a .so on the client")
        return tvm_ffi.load_module(str(path))

    tvm_ffi.register_global_func("tvm.rpc.server.workpath", work_path, override=True)
    tvm_ffi.register_global_func("tvm.rpc.server.load_module", load_module, override=True)


def _function(name: str) -> Any:
    import tvm_ffi

    return tvm_ffi.get_global_func(name)


def _tell_timeout(connection: socket.socket, limit: float | None) -> None:
    # One that stopped reading would hold the server for ever. To Linux, a socket is writable when a
    # third of its buffer is free: more than these words take.
    if select.select([], [connection], [], 0)[1]:
        _function("rpc.ReturnException")(
            connection.fileno(), f"RPCSessionTimeoutError: the session's {limit:g} s are over"
        )


def _watch_peer(connection: socket.socket) -> None:
    """Notice within three minutes that the client's machine is gone, and do not delay answers."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _die_with_parent() -> None:
    """Ask Linux to end this process with its parent, should that be killed outright."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
