# SPDX-License-Identifier: Apache-2.0
"""Worker processes that build and run kernels, one of them or several behind threads."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tvmattend.device.killable import KillableWorker
from tvmattend.device.serving.status import ending
from tvmattend.tuning import workers

# Importing TVM takes 2 s of a core, and a busy machine many times that.
_START_SECONDS = 120.0
_END_SECONDS = 5.0


class DiedError(ChildProcessError):
    """A worker process ended in the middle of a job.

    Args:
        code: As `subprocess` has it: negative is a signal; None is unknown.
    """

    def __init__(self, code: int | None) -> None:
        self.code = code
        super().__init__(
            f"the worker process ended: {'unknown how' if code is None else ending(code)}"
        )


class Worker:
    """A process that has imported TVM before the time of a job begins.

    Args:
        timeout: Seconds that a job may take.
        uses: Jobs after which the process is replaced; None keeps it.
        quiet: Whether what is printed there is thrown away.
    """

    def __init__(self, timeout: float, uses: int | None = None, quiet: bool = False) -> None:
        self._timeout = timeout
        self._uses = uses
        self._used = 0
        self._process = KillableWorker(quiet)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function there; see `KillableWorker.call`.

        Raises:
            TvmattendError: What it raised, with its hint.
            RuntimeError: It raised something else; the text is the traceback.
            TimeoutError: It took too long.
            DiedError: The process died.
            OSError: It could not be started.
        """
        if self._used == self._uses:
            self.end()
        try:
            if not self._process.is_alive():
                self._used = 0
                self._start()
            self._used += 1
            return self._process.call(self._timeout, function, arguments)
        except ChildProcessError as died:
            code, cause = self._process.code, died.__cause__
            if code is None and isinstance(cause, OSError):
                raise cause from None
            raise DiedError(code) from died

    def _start(self) -> None:
        try:
            self._process.call(_START_SECONDS, workers.wake, ())
        except TimeoutError as error:  # no job is to blame
            raise ChildProcessError("it did not start in time") from error

    def end(self) -> None:
        """Kill the process, from whatever thread; who waits for it gets a `DiedError`."""
        self._process.end()


class Pool:
    """Runs jobs in workers, which are replaced when they die or are late.

    Args:
        timeout: Seconds that a job may take.
        processes: How many; as many as there are cores if None.
        uses: Jobs after which a process is replaced; None keeps it.
    """

    def __init__(
        self, timeout: float, processes: int | None = None, uses: int | None = None
    ) -> None:
        self._timeout = timeout
        self._uses = uses
        count = processes or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(count, "tvmattend-pool")
        self._workers: dict[int, Worker] = {}  # of each thread
        self._ended = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Call a function when a process is free.

        Returns:
            Its value to be, or what `Worker.call` raises.
        """
        return self._threads.submit(self._run, function, arguments)

    def end(self) -> None:
        """Kill the processes with their children, whatever they do, and begin nothing new."""
        self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _END_SECONDS
        while True:  # one may just be starting
            for worker in list(self._workers.values()):
                worker.end()
            if not self._busy() or time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        mine = threading.get_ident()
        if mine not in self._workers:
            self._workers[mine] = Worker(self._timeout, self._uses)
        worker = self._workers[mine]
        if self._ended:
            raise DiedError(-signal.SIGKILL)
        return worker.call(function, *arguments)

    def _busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads._threads)  # noqa: SLF001
