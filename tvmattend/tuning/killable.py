# SPDX-License-Identifier: Apache-2.0
"""A worker process that another thread may kill, and that is killed when it is late.

TVM's own limit is kept by a thread inside the worker, which cannot be relied upon while the client
there hangs or is out of its mind.
"""

import contextlib
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from tvm.support.popen_pool import PopenWorker


class KillableWorker(PopenWorker):  # type: ignore[misc]  # TVM has no types
    """A worker process with a deadline on this side of the pipe."""

    def call(self, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call a function there.

        Raises:
            TimeoutError: It did not come back in time; the process is gone.
            ChildProcessError: The process died.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.end()

        self.send(function, arguments)
        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            return self.recv()
        except ChildProcessError as error:
            if late.is_set():
                raise TimeoutError(f"no answer within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()

    def end(self) -> None:
        """Kill the process; whoever waits for it gets a ChildProcessError."""
        process = self._proc
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # no zombie stays
                process.wait(1.0)
