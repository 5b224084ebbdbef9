# SPDX-License-Identifier: Apache-2.0
"""Ending a `PopenPoolExecutor` at once, while its processes work.

Its own `shutdown` kills each worker beside the thread that waits for it, which then kills it too:
one of the two finds nothing left, raises with the pool's lock held, and the interpreter never ends.
So the processes are killed first, and `shutdown` is called when no thread is left.
"""

import contextlib
import time
from typing import Any

_SECONDS = 5.0


def end_pool(pool: Any) -> None:
    """Kill a pool's processes with their children, and begin nothing new."""
    import psutil

    threads = pool._threadpool  # noqa: SLF001  (TVM's class has no other way)
    threads.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + _SECONDS
    while _busy(threads) and time.monotonic() < deadline:
        for worker in list(pool._worker_map.values()):  # noqa: SLF001
            process = worker._proc  # noqa: SLF001
            if process is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    kill_tree(psutil.Process(process.pid))
        time.sleep(0.01)
    pool.shutdown(wait=False)


def kill_tree(process: Any) -> None:
    """Kill a process (`psutil.Process`) and what it started; nothing happens if it ended."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [*process.children(recursive=True), process]:
            each.kill()


def _busy(threads: Any) -> bool:
    return any(thread.is_alive() for thread in threads._threads)  # noqa: SLF001
