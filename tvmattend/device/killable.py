# SPDX-License-Identifier: Apache-2.0
"""A process for what may hang or crash: it is killed when it is late.

TVM's client blocks in C++ for as long as a board is silent, keeps Python's lock while it drops an
object of that board, and crashes on some garbage; a compiler and a kernel may do the same. So they
live here, behind a socket whose other end keeps the deadline. The process ends with the one that
started it, however that ends.
"""

import contextlib
import fcntl
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from tvmattend.errors import TvmattendError

# For each answer of a board: an emulated one needs some ten for a forward of the largest network.
ANSWER_SECONDS = 120.0

_PROGRAM = "from tvmattend.device.killable import serve; serve()"
# A killed process needs a moment to give its memory back, on a busy machine more.
_END_SECONDS = 5.0
_LENGTH = struct.Struct("<q")
_CHUNK = 1 << 20
_VALUE, _REFUSED, _RAISED = "value", "refused", "raised"


class KillableWorker:
    """A worker process, started when it is first needed; a context manager that ends it.

    Args:
        quiet: Whether what is printed there is thrown away.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lifeline = -1
        self._retired = False
        self._starting = threading.Lock()

    def __enter__(self) -> "KillableWorker":  # noqa: PYI034  (Self came with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._forget()

    def __del__(self) -> None:
        self.end()
        self._forget()

    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """How the last process ended, as `subprocess` has it; None if it is there, or never was."""
        return None if self._process is None else self._process.poll()

    def call(self, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call a function there.

        Args:
            seconds: How long it may take; starting the process and importing count.
            function: At the top of an importable module.
            arguments: Plain data, as is what it gives back.

        Raises:
            TvmattendError: What the function raised, with its hint.
            RuntimeError: It raised something else; the text is the traceback.
            TimeoutError: It did not come back in time; the process is gone.
            ChildProcessError: The process died.
        """
        deadline = time.monotonic() + seconds
        try:
            channel = self._started()
            _send(channel, (function, arguments), deadline)
            kind, *told = _receive(channel, deadline)
        except TimeoutError as error:
            self.end()
            raise TimeoutError(f"no answer within {seconds:g} s") from error
        except (OSError, EOFError) as error:
            self.end()
            raise ChildProcessError(f"the process ended ({error})") from error
        except BaseException:  # Ctrl-C: what it answers later would be taken for the next answer
            self.end()
            raise
        if kind == _VALUE:
            return told[0]
        if kind == _REFUSED:
            raise told[0]
        raise RuntimeError(told[0])

    def end(self) -> None:
        """Kill the process, from whatever thread; who waits for it gets a ChildProcessError."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # with the linker that it may run
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # no zombie stays
            process.wait(_END_SECONDS)

    def retire(self) -> None:
        """Kill the process and start none any more, from whatever thread."""
        with self._starting:
            self._retired = True
        self.end()

    def _started(self) -> socket.socket:
        """The socket to the process, which is started if it is not there."""
        if self._socket is not None and self.is_alive():
            return self._socket
        with self._starting:
            if self._retired:
                raise EOFError("it is not needed any more")
            return self._start()

    def _start(self) -> socket.socket:
        self._forget()
        self._process = None
        ours, theirs = socket.socketpair()
        ends, lifeline = os.pipe()
        output = subprocess.DEVNULL if self._quiet else None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(ends)],
                # An editable install or a checkout is not on a new Python's path.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(), ends),
                start_new_session=True,  # Ctrl-C reaches us alone
            )
        except BaseException:
            ours.close()
            os.close(lifeline)
            raise
        finally:
            theirs.close()
            os.close(ends)
        self._lifeline = lifeline
        self._socket = ours
        return ours

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            os.close(self._lifeline)
            self._socket = None


def serve() -> None:
    """The process: do what is asked until nobody asks any more."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    # tvm_ffi imports torch if it finds it: four seconds of a processor, for nothing here.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    while True:
        try:
            function, arguments = _receive(channel, None)
        except EOFError:
            return
        _send(channel, _outcome(function, arguments), None)


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        return _VALUE, function(*arguments)
    except TvmattendError as error:
        return _REFUSED, error
    except Exception:  # noqa: BLE001  (whatever it is goes to the caller)
        return _RAISED, traceback.format_exc()


def _die_with(lifeline: int) -> None:
    """Have Linux end this process when the other end of a pipe closes, whatever it is doing.

    By SIGIO, which nobody here handles. `PR_SET_PDEATHSIG` would be the death of the *thread* that
    started us.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    os.set_blocking(lifeline, False)
    with contextlib.suppress(BlockingIOError):
        if not os.read(lifeline, 1):  # it closed before we listened
            raise SystemExit


def _send(channel: socket.socket, value: object, deadline: float | None) -> None:
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    channel.settimeout(_left(deadline))
    channel.sendall(_LENGTH.pack(len(data)) + data)


def _receive(channel: socket.socket, deadline: float | None) -> Any:
    """Receive a message.

    Raises:
        EOFError: The other end closed.
        TimeoutError: It took too long.
    """
    (size,) = _LENGTH.unpack(_take(channel, _LENGTH.size, deadline))
    # From a process of ours: nobody else has the other end of the pair.
    return pickle.loads(_take(channel, size, deadline))  # noqa: S301


def _take(channel: socket.socket, size: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        channel.settimeout(_left(deadline))
        chunk = channel.recv(min(_CHUNK, size - len(data)))
        if not chunk:
            raise EOFError("its end of the line closed")
        data += chunk
    return bytes(data)


def _left(deadline: float | None) -> float | None:
    """Seconds until then.

    Raises:
        TimeoutError: It is over.
    """
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
