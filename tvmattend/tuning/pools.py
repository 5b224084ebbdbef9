# SPDX-License-Identifier: Apache-2.0
"""Worker processes that stay, behind threads that wait for them.

The processes are TVM's (`tvm.support.popen_pool.PopenWorker`); its own pool of them is not used.
That one does not say how a process ended, joins its threads when it is collected, which may be in
one of them, and cannot be shut down while its processes work: `shutdown` kills each beside the
thread that waits for it, which then kills it too, finds nothing left and raises with the pool's
lock held, so that the interpreter never ends.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tvmattend.tuning import workers

_SECONDS = 5.0
# Begins the text of a `DiedError`, for those who get only that.
ENDED = "the worker process ended"


class DiedError(ChildProcessError):
    """A worker process ended in the middle of a job.

    Args:
        code: As `subprocess` has it: negative is a signal; None is unknown.
    """

    def __init__(self, code: int | None) -> None:
        self.code = code
        super().__init__(f"{ENDED}: {_ending(code)}")


class Pool:
    """Runs jobs in worker processes, which are replaced when they die or are late.

    Args:
        timeout: Seconds that a job may take.
        processes: How many; as many as there are cores if None.
        uses: Jobs after which a process is replaced; None keeps it.
        stderr: Where a process's standard error goes, as `subprocess` has it.
    """

    def __init__(
        self,
        timeout: float,
        processes: int | None = None,
        uses: int | None = None,
        stderr: int | None = None,
    ) -> None:
        from tvm.s_tir.meta_schedule.utils import cpu_count

        self._timeout = timeout
        self._uses = uses
        self._stderr = stderr
        self._threads = ThreadPoolExecutor(processes or cpu_count(logical=True), "tvmattend-pool")
        self._workers: dict[int, Any] = {}  # of each thread
        self._ended = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Call a function when a process is free.

        Returns:
            Its value to be, or what it raised; `TimeoutError`, `DiedError`, or the `OSError` of a
            process that could not be started.
        """
        return self._threads.submit(self._run, function, arguments)

    def end(self) -> None:
        """Kill the processes with their children, whatever they do, and begin nothing new."""
        import psutil

        self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _SECONDS
        while self._busy() and time.monotonic() < deadline:
            for worker in list(self._workers.values()):
                process = worker._proc  # noqa: SLF001  (TVM's class has no other way)
                if process is not None:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        kill_tree(psutil.Process(process.pid))
            time.sleep(0.01)
        for worker in self._workers.values():
            worker.kill()

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        worker = self._worker()
        if self._ended:
            raise DiedError(-signal.SIGKILL)
        worker.send(function, arguments, None, self._timeout)
        process = worker._proc  # noqa: SLF001  (`recv` forgets it when it is dead)
        try:
            return worker.recv()
        except TimeoutError:
            raise
        except Exception as error:
            if process is None or process.poll() is None:  # it told what went wrong
                raise
            raise DiedError(process.returncode) from error

    def _worker(self) -> Any:
        from tvm.support.popen_pool import PopenWorker

        mine = threading.get_ident()
        if mine not in self._workers:
            self._workers[mine] = PopenWorker(
                workers.end_with_parent, (), self._uses, stderr=self._stderr
            )
        return self._workers[mine]

    def _busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads._threads)  # noqa: SLF001


def kill_tree(process: Any) -> None:
    """Kill a process (`psutil.Process`) and what it started; nothing happens if it ended."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [*process.children(recursive=True), process]:
            each.kill()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
