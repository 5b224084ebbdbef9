# SPDX-License-Identifier: Apache-2.0
"""Candidates -> times: MetaSchedule's builder, and benches to measure on, here or on a board."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import tvmattend
from tvmattend.codegen.link import Linker
from tvmattend.device.endpoint import Endpoint
from tvmattend.device.probe_kernel import build_probe
from tvmattend.target import TargetSpec
from tvmattend.tuning.bench import Artifact, Bench, Candidate, Ending, Outcome, Repetition
from tvmattend.tuning.board_bench import BoardBench
from tvmattend.tuning.builder import KernelBuilder
from tvmattend.tuning.pools import kill_tree
from tvmattend.tuning.record import Origin
from tvmattend.tuning.workplace import open_workplace

if TYPE_CHECKING:
    from tvmattend.tuning.roster import Roster


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
        self._target = target
        self._repetition = repetition
        self._endpoint = endpoint
        self._cross_compiler = cross_compiler
        self._benches: list[Ending] = []
        self._before = set(_workers())
        self._directory = open_workplace()
        self._importable = ExitStack()
        self._importable.enter_context(importable())
        try:
            linker = self._linker(target, cross_compiler)
            self._builder = KernelBuilder(target, linker, self._directory.name, self._timeout)
            self._builder.warm_up()
            self._open()
        except BaseException:
            self.close()
            raise

    def _linker(self, target: TargetSpec, cross_compiler: str | None) -> Linker:
        """What links the kernels."""
        return Linker(target, cross_compiler)

    def _open(self) -> None:
        """Start what measures in `run`; what has an end goes to `_benches`."""
        if self._endpoint is not None:
            build_probe(self._target, self._probe, self._cross_compiler)
            self._bench: Bench = self.open_bench()
            return
        from tvmattend.tuning.local_bench import LocalBench

        bench = LocalBench(self._repetition, self._target.num_cores)
        self._benches.append(bench)
        self._bench = bench

    def open_bench(self, roster: "Roster | None" = None) -> BoardBench:
        """A bench for a board of the endpoint, with a process of its own; `close` ends it.

        Args:
            roster: Knows the boards, where the endpoint is a tracker that has several.
        """
        assert self._endpoint is not None  # noqa: S101  (the caller has one)
        bench = BoardBench(
            self._endpoint,
            self._repetition,
            self._target,
            self._probe,
            Path(self._directory.name),
            hygiene=self.origin == "measured",
            examined=None if roster is None else roster.examined,
        )
        self._benches.append(bench)
        return bench

    @property
    def _probe(self) -> Path:
        return Path(self._directory.name) / "probe.so"

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
        return list(self._products(candidates))

    def _products(self, candidates: Sequence[Candidate]) -> Iterator[Artifact | Outcome]:
        """Begin to build a batch; each in turn comes when it is ready."""
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo

        modules = [item.schedule.mod for item in candidates if item.schedule is not None]
        products = self._builder.build(modules)
        for item in candidates:
            if item.schedule is None:
                yield Outcome("build-error", error=f"schedule: {item.error}")
                continue
            product = next(products)
            if isinstance(product, str):
                # The arguments of the unscheduled function: a schedule keeps its signature.
                info = ArgInfo.from_entry_func(item.task.mod, remove_preproc=False)
                yield Artifact(product, info, item.task.flops)
            else:
                late = isinstance(product, TimeoutError)
                yield Outcome("timeout" if late else "build-error", error=str(product))

    def run(self, artifact: Artifact, hot_too: bool = False) -> Outcome:
        """Time one kernel; the library stays until `discard`, for another attempt."""
        return self._bench.run(artifact, hot_too)

    def discard(self, artifact: Artifact) -> None:
        """Remove a library that is not needed any more."""
        Path(artifact.path).unlink(missing_ok=True)

    def answers(self, seconds: float) -> bool:
        """Whether the machine can take another kernel."""
        return self._bench.answers(seconds)

    def close(self) -> None:
        """Kill the workers this object started, then remove what was built.

        By force: a kernel that hangs is not waited for.
        """
        if hasattr(self, "_builder"):  # a failed start leaves it out
            self._builder.close()
        for bench in self._benches:
            bench.end()
        for worker in set(_workers()) - self._before:  # one that was just starting
            kill_tree(worker)
        self._importable.close()
        self._directory.cleanup()


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
