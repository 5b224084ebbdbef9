# SPDX-License-Identifier: Apache-2.0
"""Candidates -> times: MetaSchedule's builder and runners, with nothing lost on the way.

The runners are called one kernel at a time, so that each time is on disk before the next kernel
starts. They are called as plain Python objects (`_cls`): through TVM's object layer a Ctrl-C that
arrives inside the callback would be swallowed by C++.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import tvmattend
from tvmattend.codegen.link import Linker
from tvmattend.device.endpoint import Endpoint
from tvmattend.errors import TvmattendError
from tvmattend.target import TargetSpec
from tvmattend.tuning import workers
from tvmattend.tuning.builder import KernelBuilder
from tvmattend.tuning.record import Origin, Status
from tvmattend.tuning.tasks import Task

# Reaching the board, uploading and starting a session come on top of a trial's own time.
_CONNECT_SECONDS = 15.0
# How long a board that went away is waited for, in seconds before each new attempt.
RECONNECT_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)

# How the runners put it when a kernel takes its process along: here, and on a board.
_CRASH_SIGNS = ("Subprocess terminated", "RPCCode::kReturn")
_CRASHED = "CrashError: the process that ran the kernel died"


@dataclass(frozen=True)
class Candidate:
    """A point of a task, scheduled.

    Attributes:
        task: The kernel.
        point: The value of every knob.
        schedule: The `tvm.s_tir.Schedule`; None if the point could not be scheduled.
        error: Why it could not; empty otherwise.
    """

    task: Task
    point: Mapping[str, int]
    schedule: Any
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: times, or the whole text of what went wrong."""

    status: Status
    run_secs: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Artifact:
    """A kernel that is built and waits to be measured."""

    path: str
    args_info: Any


class BoardLostError(Exception):
    """The board did not answer after a trial; raised by `Measurer.run`, text included."""


class Measurer(Protocol):
    """A machine that candidates are built for and timed on."""

    @property
    def origin(self) -> Origin:
        """What its times are worth."""

    @property
    def machine(self) -> Mapping[str, Any]:
        """Its description for the records."""

    def build(self, candidates: Sequence[Candidate]) -> list[Artifact | Outcome]:
        """Build a batch; a failure takes the place of its artifact."""

    def run(self, artifact: Artifact) -> Outcome:
        """Time one kernel.

        Raises:
            BoardLostError: The board is gone; the kernel may or may not be the reason.
        """

    def discard(self, artifact: Artifact) -> None:
        """Remove a kernel that was measured."""

    def answers(self) -> bool:
        """Whether the machine can take another kernel."""

    def close(self) -> None:
        """End all worker processes and remove what was built."""


@dataclass(frozen=True)
class Repetition:
    """How often a kernel is called: `repeat` figures, each the mean of `number` calls or more.

    Attributes:
        number: Calls in one figure, at least.
        repeat: Figures; the record keeps them all.
        min_repeat_ms: Calls go on until a figure took that long.
        timeout: Seconds for building a kernel, and again for measuring it.
    """

    number: int
    repeat: int
    min_repeat_ms: int
    timeout: float


class KernelMeasurer:
    """Builds here; measures here or on a board over RPC.

    Args:
        target: What to build for.
        repetition: How often to call a kernel, and the time limit.
        endpoint: The board; None measures on this machine.
        origin: What the times are worth.
        machine: Description of the machine that is measured.
        cross_compiler: Linker to use instead of Zig.
    """

    def __init__(
        self,
        target: TargetSpec,
        repetition: Repetition,
        endpoint: Endpoint | None,
        origin: Origin,
        machine: Mapping[str, Any],
        cross_compiler: str | None = None,
    ) -> None:
        self.origin = origin
        self.machine = machine
        self._timeout = repetition.timeout
        self._endpoint = endpoint
        self._before = set(_workers())
        self._directory = tempfile.TemporaryDirectory(prefix="tvmattend-tune-")
        try:
            linker = Linker(target, cross_compiler)
            self._builder = KernelBuilder(target, linker, self._directory.name, self._timeout)
            self._builder.warm_up()
            with importable():
                self._runner = self._open_runner(repetition, target.num_cores)
        except BaseException:
            self.close()
            raise

    def _open_runner(self, repetition: Repetition, threads: int) -> Any:
        """What runs a kernel: MetaSchedule's runner, with its `pool` of processes."""
        if self._endpoint is None:
            return _local_runner(repetition, threads)
        return _board_runner(repetition, self._endpoint, threads)

    def __enter__(self) -> "KernelMeasurer":  # noqa: PYI034  (Self came with Python 3.11)
        """Nothing to do: the workers are up."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave no process and no file behind."""
        del kind, error, trace
        self.close()

    def build(self, candidates: Sequence[Candidate]) -> list[Artifact | Outcome]:
        """Build a batch, as many at once as there are cores."""
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo

        with importable():
            modules = [item.schedule.mod for item in candidates if item.schedule is not None]
            products = iter(self._builder.build(modules))
        built: list[Artifact | Outcome] = []
        for item in candidates:
            if item.schedule is None:
                built.append(Outcome("build-error", error=f"schedule: {item.error}"))
                continue
            product = next(products)
            if isinstance(product, str):
                # The arguments of the unscheduled function: a schedule keeps its signature.
                info = ArgInfo.from_entry_func(item.task.mod, remove_preproc=False)
                built.append(Artifact(product, info))
            else:
                late = isinstance(product, TimeoutError)
                built.append(Outcome("timeout" if late else "build-error", error=str(product)))
        return built

    def run(self, artifact: Artifact) -> Outcome:
        """Time one kernel; the library stays until `discard`, for another attempt."""
        from tvm.s_tir.meta_schedule.runner import RunnerInput

        given = RunnerInput(artifact.path, "cpu", artifact.args_info)
        with importable():
            future = self._runner.run([given])[0]
            while not future.done():  # polled: a wait inside C++ would be deaf to Ctrl-C
                time.sleep(0.005)
        result = future.result()
        if result.run_secs is not None:
            return Outcome("ok", tuple(float(second) for second in result.run_secs))
        error = str(result.error_msg)
        if "RPCSessionTimeoutError" in error:  # the server itself ended the session: it is alive
            return Outcome("timeout", error=f"measuring took more than {self._timeout:g} s")
        if self._endpoint is not None and not self.answers():
            raise BoardLostError(error)
        if "Timeout, killed" in error:
            return Outcome("timeout", error=f"measuring took more than {self._timeout:g} s")
        crashed = any(sign in error for sign in _CRASH_SIGNS)
        return Outcome("run-error", error=f"{error}\n{_CRASHED}" if crashed else error)

    def discard(self, artifact: Artifact) -> None:
        """Remove a library that is not needed any more."""
        Path(artifact.path).unlink(missing_ok=True)

    def answers(self) -> bool:
        """Open a session in the worker process, where a board that hangs can be given up on."""
        if self._endpoint is None:
            return True
        with importable():
            future = self._runner.pool.submit(workers.greet, self._endpoint)
            try:
                future.result()
            except (TvmattendError, TimeoutError, RuntimeError, OSError, EOFError):
                return False
        return True

    def close(self) -> None:
        """Kill the workers this object started, then remove what was built.

        The processes go first and by force: MetaSchedule's own shutdown closes a pipe that another
        thread reads, and would wait for a kernel that hangs.
        """
        for worker in set(_workers()) - self._before:
            _kill_tree(worker)
        if hasattr(self, "_builder"):  # a failed start leaves it out
            self._builder.close()
        if hasattr(self, "_runner"):
            self._runner.pool.shutdown(wait=False)
        self._directory.cleanup()


def _evaluator(repetition: Repetition) -> Any:
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig

    return EvaluatorConfig(
        number=repetition.number,
        repeat=repetition.repeat,
        min_repeat_ms=repetition.min_repeat_ms,
    )


def _local_runner(repetition: Repetition, threads: int) -> Any:
    from tvm.s_tir.meta_schedule.runner import LocalRunner

    return LocalRunner._cls(  # noqa: SLF001
        timeout_sec=repetition.timeout,
        evaluator_config=_evaluator(repetition),
        f_alloc_argument=partial(workers.allocate_local, threads=threads),
    )


def _board_runner(repetition: Repetition, endpoint: Endpoint, threads: int) -> Any:
    from tvm.s_tir.meta_schedule.runner import RPCConfig, RPCRunner
    from tvm.support.popen_pool import PopenPoolExecutor

    runner = RPCRunner._cls(  # noqa: SLF001
        # It insists on a tracker; the endpoint knows better.
        rpc_config=RPCConfig("unused", 9190, "unused", 1, 1),
        evaluator_config=_evaluator(repetition),
        f_create_session=partial(
            workers.connect_board, endpoint=endpoint, session_timeout=repetition.timeout
        ),
        f_alloc_argument=partial(workers.allocate_remote, threads=threads),
    )
    # Its own pool has no time limit: a board that loses power would be waited for without end.
    runner.pool.shutdown()
    runner.pool = PopenPoolExecutor(max_workers=1, timeout=repetition.timeout + _CONNECT_SECONDS)
    return runner


@contextmanager
def importable() -> Iterator[None]:
    """Let worker processes import this package, however this process came by it."""
    home = str(Path(tvmattend.__file__).resolve().parent.parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = home if before is None else f"{home}{os.pathsep}{before}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _workers() -> list[Any]:
    """MetaSchedule's worker processes under this process (`psutil.Process`)."""
    import psutil

    def is_worker(child: Any) -> bool:
        try:
            return "tvm.exec.popen_worker" in child.cmdline()
        except psutil.Error:  # it ended while we looked
            return False

    return [child for child in psutil.Process().children() if is_worker(child)]


def _kill_tree(process: Any) -> None:
    import psutil

    try:
        for each in [*process.children(recursive=True), process]:
            each.kill()
    except psutil.NoSuchProcess:
        return
