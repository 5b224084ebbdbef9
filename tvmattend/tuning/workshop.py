# SPDX-License-Identifier: Apache-2.0
"""Where kernels are built for trials: the builder, its processes and their files."""

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tvmattend.codegen.link import Linker
from tvmattend.errors import StorageError, TuningError
from tvmattend.interrupts import kept
from tvmattend.target import TargetSpec
from tvmattend.tuning.bench import Artifact, Candidate, Ending, Outcome
from tvmattend.tuning.builder import KernelBuilder
from tvmattend.tuning.own_faults import require_place, settled
from tvmattend.tuning.workplace import open_workplace

_Self = TypeVar("_Self", bound="Workshop")


class Workshop:
    """Builds kernels; who derives from it gives them to something that times them.

    Args:
        target: What to build for.
        timeout: Seconds that building a kernel may take.
        cross_compiler: Linker to use instead of Zig.

    Raises:
        ToolMissingError: The linker, or something that the derived class needs, is missing.
        StorageError: This machine has no room for kernels.
    """

    def __init__(self, target: TargetSpec, timeout: float, cross_compiler: str | None) -> None:
        self._target = target
        self._timeout = timeout
        self._benches: list[Ending] = []
        self._directory = open_workplace()
        try:
            require_place(self._place)  # before LLVM finds out: it would end this process
            linker = self._linker(target, cross_compiler)
            self._builder = KernelBuilder(target, linker, self._directory.name, timeout)
            with kept():  # the first kernels are compiled in this process
                self._builder.warm_up()
                self._open()
        except BaseException:
            self.close()
            raise

    def _linker(self, target: TargetSpec, cross_compiler: str | None) -> Linker:
        """What links the kernels."""
        return Linker(target, cross_compiler)

    def _open(self) -> None:
        """Start what times kernels; what has an end goes to `_benches`."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:  # noqa: PYI019  (Self came with Python 3.11)
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

    def begin(self, candidate: Candidate) -> Future[str] | None:
        """Begin to build; None if there is no schedule. `product` waits."""
        if candidate.schedule is None:
            return None
        return self._builder.begin(candidate.schedule.mod)

    @kept()
    def product(self, candidate: Candidate, begun: Future[str] | None) -> Artifact | Outcome:
        """Wait for a kernel that was begun: its library, or what went wrong.

        Raises:
            StorageError: This machine cannot write: no candidate is to blame.
            TuningError: The builder's processes are killed.
        """
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo

        if begun is None:
            return Outcome("build-error", error=f"schedule: {candidate.error}")
        try:
            path = settled(partial(self._builder.begin, candidate.schedule.mod), begun, self._place)
        except TimeoutError:
            return Outcome("timeout", error=f"building took more than {self._timeout:g} s")
        except (StorageError, TuningError):
            raise
        except Exception as error:  # noqa: BLE001  (whatever TVM raises; recorded)
            return Outcome("build-error", error=str(error))
        # The arguments of the unscheduled function: a schedule keeps its signature.
        info = ArgInfo.from_entry_func(candidate.task.mod, remove_preproc=False)
        return Artifact(path, info, candidate.task.flops)

    @property
    def _place(self) -> Path:
        """Where the libraries and everything else of the run's own goes."""
        return Path(self._directory.name)

    def close(self) -> None:
        """Kill the workers this object started, then remove what was built.

        By force: a kernel that hangs is not waited for.
        """
        if hasattr(self, "_builder"):  # a failed start leaves it out
            self._builder.close()
        for bench in self._benches:
            bench.end()
        self._directory.cleanup()
