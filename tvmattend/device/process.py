# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping the server of `serving/` as a process of its own, here or emulated."""

import contextlib
import ipaddress
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tvmattend.device.endpoint import Endpoint
from tvmattend.errors import BoardUnreachableError, PortError

# `serving` is a package on its own in that process, which may not have tvmattend at all.
# Its directory replaces the current one on the path, and leaves it when everything is imported.
_PROGRAM = (
    "import sys; sys.path[0] = sys.argv.pop(1); from serving.main import main; "
    "del sys.path[0]; sys.exit(main())"
)
_STOP_SECONDS = 5.0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; other names than `localhost` are not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServerOptions:
    """How to serve, whatever runs the server.

    Attributes:
        host: Address to bind; loopback unless the user says otherwise.
        port: Port; 0 takes a free one.
        tracker: Tracker and key to register with; None serves whoever connects.
        board: Facts that the server tells its clients (see `BoardInfo`).
        verbose: Log every session on stderr.
        start_seconds: How long the server may take to be ready.
        advertise: Host and port that the tracker gives to clients, where that is not what is
            bound: behind a proxy or a forwarded port.
        sysfs: Directory that holds the `/sys` to read clock and temperature from; None is the
            board's own.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tracker: Endpoint | None = None
    board: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False
    start_seconds: float = 120.0
    advertise: tuple[str, int] | None = None
    sysfs: Path | None = None


class ServerProcess:
    """A running server; a context manager that stops it, with all its children.

    Args:
        python: The command of the Python that runs it, e.g. `[sys.executable]`.
        environment: Its whole environment.
        options: How to serve.
        runtime: Directory of `libtvm_runtime.so`, as seen from that Python; None finds it.
        log: File for its stderr; None leaves it on ours.

    Raises:
        PortError: The address cannot be bound.
        BoardUnreachableError: The server ended, or was silent, before it was ready.
    """

    def __init__(
        self,
        python: Sequence[str],
        environment: Mapping[str, str],
        options: ServerOptions,
        runtime: Path | None = None,
        log: Path | None = None,
    ) -> None:
        # Bound here, not in the child: the fault is known at once and by its errno, and a client
        # may connect while the server is still starting.
        listener = listen(options.host, options.port)
        with listener, contextlib.ExitStack() as stack:
            self.port = int(listener.getsockname()[1])
            self.host = options.host
            stderr: IO[bytes] | None = None
            if log is not None:
                stderr = stack.enter_context(log.open("wb"))
            lifeline, self._lifeline = os.pipe()
            stack.callback(os.close, lifeline)
            try:
                self._process = subprocess.Popen(
                    [
                        *python,
                        *("-c", _PROGRAM, str(Path(__file__).parent)),
                        *_arguments(options, listener, lifeline, runtime),
                    ],
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    pass_fds=[listener.fileno(), lifeline],
                    # Ctrl-C reaches us alone; we stop the server in order.
                    start_new_session=True,
                )
            except BaseException:
                os.close(self._lifeline)
                raise
        try:
            self._wait_until_ready(options.start_seconds, log)
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """`host:port`, as `--rpc` takes it."""
        return Endpoint(self.host, self.port).address

    @property
    def pid(self) -> int:
        """Process id, for looking at its memory and children."""
        return self._process.pid

    def wait(self) -> int:
        """Wait until the server ends by itself, which is a fault; give its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """End the server and every process of its sessions; nothing happens if it ended."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self._process.terminate()  # the lifeline is watched once it serves; this works before too
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        # Whatever is left of it, sessions included, is in its process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> "ServerProcess":  # noqa: PYI034  (typing.Self is of 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_ready(self, seconds: float, log: Path | None) -> None:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101  (asked for above)
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            ready = selector.select(seconds)
        if ready and stdout.readline().strip() == b"ready":
            return
        where = f"the server for {self.address}"
        reason = _last_line(log)
        if not ready:
            raise BoardUnreachableError(
                f"{where} was not ready after {seconds:g} s{reason}",
                "this machine may be very busy, or short of memory: try again",
            )
        raise BoardUnreachableError(
            f"{where} ended with {self._process.wait()} before it was ready{reason}",
            "its own message is above" if log is None else f"its own messages are in `{log}`",
        )


def serve_here(options: ServerOptions, log: Path | None = None) -> ServerProcess:
    """Serve TVM RPC on this machine, as on a Raspberry Pi.

    Raises:
        PortError: The address cannot be bound.
        BoardUnreachableError: The server did not start.
    """
    # One thread: numpy's pool would be there when the server forks.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    # Our own path goes along: an editable install or a checkout is not on a new Python's path.
    environment["PYTHONPATH"] = os.pathsep.join(place for place in sys.path if place)
    return ServerProcess([sys.executable], environment, options, log=log)


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen.

    Raises:
        PortError: The port is taken or needs privileges, or the host is not an address of ours.
    """
    if not 0 <= port < 65536:  # getaddrinfo would take it modulo 65536
        raise PortError(f"{port} is not a port", "give 0 to 65535")
    listener = None
    try:
        family, kind, protocol, _, address = next(_addresses(host, port))
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(16)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise PortError(
            f"cannot serve on {host}:{port}: {error.strerror or error}",
            "choose another --port (0 takes a free one) or --host",
        ) from error
    return listener


def _addresses(host: str, port: int) -> Iterator[Any]:
    yield from socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def _arguments(
    options: ServerOptions, listener: socket.socket, lifeline: int, runtime: Path | None
) -> list[str]:
    words = ["--socket", str(listener.fileno()), "--lifeline", str(lifeline)]
    words += ["--board", json.dumps(dict(options.board))]
    if runtime is not None:
        words += ["--runtime", str(runtime)]
    if options.tracker is not None:
        words += ["--tracker", options.tracker.address, "--key", options.tracker.key]
        told = options.advertise or (options.host, int(listener.getsockname()[1]))
        if told[0] not in {"0.0.0.0", "::", ""}:  # noqa: S104  (compared, not bound)
            words += ["--advertise", Endpoint(*told).address]
    if options.sysfs is not None:
        words += ["--sysfs", str(options.sysfs)]
    if options.verbose:
        words.append("--verbose")
    return words


def _last_line(log: Path | None) -> str:
    if log is None:
        return ""
    lines = log.read_text(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""
