# SPDX-License-Identifier: Apache-2.0
"""The process in which one runtime lives: `python -m tvmattend.bench.worker DESCRIPTOR CPUS`.

It answers commands that arrive on a pipe and is blocked on that pipe in between, so its threads
disturb nobody. Nothing but the standard library is imported before it is bound to its cores:
thread pools look at the binding when they are made.
"""

import ctypes
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmattend.bench.runtime import Runtime


class Session:
    """The commands, one method each."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def convert(self, entry: Any, setup: Any) -> Any:
        """Write what a runtime loads."""
        from tvmattend.bench.catalogue import make

        return make(entry, setup).convert()

    def prepare(self, entry: Any, setup: Any) -> str:
        """Load the runtime and give its version."""
        from tvmattend.bench.catalogue import make

        self._runtime = make(entry, setup)
        self._runtime.prepare()
        return self._runtime.version()

    def reference(self, request: Any, count: int) -> Any:
        """Draw inputs and run PyTorch on them."""
        from tvmattend.bench.torch_network import reference

        return reference(request, count)

    def infer(self, inputs: Any) -> Any:
        """Run once and give the outputs; the inputs stay in place."""
        runtime = self._loaded()
        runtime.feed(inputs)
        runtime.run()
        return runtime.outputs()

    def burst(self, settle: float, seconds: float, least: int) -> list[float]:
        """Warm up for `settle` seconds, then time for about `seconds`, at least `least` runs."""
        runtime = self._loaded()
        end = time.perf_counter() + settle
        last = runtime.time(1)[0]
        while time.perf_counter() < end:
            last = runtime.time(1)[0]
        return runtime.time(max(least, int(seconds / max(last, 1e-6))))

    def _loaded(self) -> "Runtime":
        if self._runtime is None:
            raise RuntimeError("`prepare` comes first")
        return self._runtime


def serve(connection: Connection) -> None:
    """Answer commands until the pipe closes."""
    session = Session()
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            return
        try:
            reply = (True, getattr(session, command)(*arguments))
        except Exception as error:  # noqa: BLE001  (runtimes raise what they like; the parent judges)
            sys.stderr.write(f"{command}: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
            reply = (False, _portable(error))
        connection.send(reply)


def _portable(error: Exception) -> Exception:
    """Give an error that the parent can unpickle without the runtime's package."""
    if type(error).__module__ == "tvmattend.errors":
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RuntimeError(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however that came about.

    A parent that is killed cannot close its workers, and one that converts or tunes would not
    look at its pipe for minutes.
    """
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Bind to the cores and serve."""
    descriptor, cpus = arguments
    if cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    _die_with_parent()
    # Ctrl-C goes to the whole terminal; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Connection(int(descriptor)))


if __name__ == "__main__":
    main(sys.argv[1:])
