# SPDX-License-Identifier: Apache-2.0
"""The parent's end of a worker process."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any

import tvmattend
from tvmattend.device.serving.status import ending
from tvmattend.errors import BenchmarkError

# A converter or a tuning run that hangs must not hold the comparison up for ever.
_CONVERT_SECONDS = 7200
_COMMAND_SECONDS = 1800
_END_SECONDS = 10


class Worker:
    """One worker process.

    Args:
        log: File for what the runtime prints, which otherwise would mix with our own output.
        cpus: Cores that it is bound to; none for all.
        threads: For the environment variables that size thread pools; None leaves them alone.
    """

    def __init__(self, log: Path, cpus: Sequence[int] = (), threads: int | None = None) -> None:
        self._log = log
        ours, theirs = Pipe()
        environment = _environment(threads)
        words = [str(theirs.fileno()), ",".join(str(cpu) for cpu in cpus)]
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tvmattend.bench.worker", *words],
                pass_fds=(theirs.fileno(),),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                # Its own group, so that compilers that it starts end with it.
                start_new_session=True,
            )
        theirs.close()
        self._connection = ours
        self._open = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def call(self, command: str, *arguments: Any) -> Any:
        """Have a command done and give its result.

        Raises:
            TvmattendError: The command raised it.
            BenchmarkError: It raised another error, died, or took too long.
        """
        limit = _CONVERT_SECONDS if command == "convert" else _COMMAND_SECONDS
        try:
            self._connection.send((command, arguments))
            if not self._connection.poll(limit):
                raise BenchmarkError(f"`{command}` took more than {limit} s")
            done, value = self._connection.recv()
        except (EOFError, ConnectionError, OSError) as error:
            try:
                how = f"died in `{command}` ({ending(self._process.wait(_END_SECONDS))})"
            except subprocess.TimeoutExpired:  # `close` ends it
                how = f"broke off in `{command}` and does not end"
            raise BenchmarkError(f"the process {how}: {self._last_line()}") from error
        if done:
            return value
        if type(value) is RuntimeError:
            raise BenchmarkError(str(value))
        raise value

    def close(self) -> None:
        """End the process and whatever it started; a second time does nothing."""
        if not self._open:
            return
        self._open = False
        self._connection.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        else:
            self._signal(signal.SIGKILL)  # what it started, if anything is left

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # the group is empty: everything has ended

    def _last_line(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"

    def __enter__(self) -> "Worker":  # noqa: PYI034  (typing.Self is of Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _environment(threads: int | None) -> dict[str, str]:
    root = str(Path(tvmattend.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if threads is not None:
        for library in ("OMP", "MKL", "OPENBLAS", "TVM"):
            environment[f"{library}_NUM_THREADS"] = str(threads)
    return environment
