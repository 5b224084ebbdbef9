# SPDX-License-Identifier: Apache-2.0
"""The estimate of one compiled kernel, quick enough to stand where a measurement would."""

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tvmattend
from tvmattend.cache import Progress
from tvmattend.device.emulated import find_qemu
from tvmattend.errors import TargetError, TuningError
from tvmattend.machine.board_files import CORES
from tvmattend.machine.estimate import Estimate, estimate, seconds
from tvmattend.machine.guest_programs import guest_board, guest_program
from tvmattend.machine.instructions import llvm_version, require_llvm
from tvmattend.machine.parameters import CORE, MODEL_ERROR, OTHER_CORE, SHIPPED, Parameters
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import Trace
from tvmattend.machine.tracing import ProgramError, Settings, trace
from tvmattend.target import TargetSpec

_SOURCE = Path(__file__).with_name("kernel_guest.c")
# What is replayed: so many windows of so many blocks. A kernel repeats itself.
_WINDOWS, _WINDOW = 256, 256
# Of this room's files, those that do not decide what a kernel's estimate is.
_OTHERS = {
    "__init__.py", "answers.py", "bundle_guest.c", "bundle_guest.py", "bundles.py", "fitting.py",
    "guests.py", "libraries.py", "programs.py",
}  # fmt: skip
_UNWRITTEN = 68  # how kernel_guest.c ends that could not write its output
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4}


class Argument(NamedTuple):
    """A tensor that the kernel takes: its shape and dtype, e.g. `float32`."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def describe(self) -> str:
        """The guest's form of it."""
        name = self.dtype.rstrip("0123456789")
        code, bits = _CODES["uint" if name == "bool" else name], self.dtype[len(name) :] or "8"
        return f"{code}:{bits}:{','.join(map(str, self.shape))}"


@dataclass(frozen=True)
class KernelEstimator:
    """Estimates kernels, each in a guest of its own.

    Attributes:
        board: What the guest sees as its root: the C library and the board's files.
        guest: The program that runs a kernel.
        parameters: Of the model.
    """

    board: Path
    guest: Path
    parameters: Parameters = SHIPPED

    def __call__(
        self,
        library: Path,
        arguments: Sequence[Argument],
        name: str = "main",
        outputs: Path | None = None,
        timeout: float | None = None,
        threads: int = 1,
    ) -> Estimate:
        """Run a kernel once, in caches that hold the ends of its tensors, and estimate that run.

        With several threads, what is counted is the first of the tasks that they would have; it
        shares L2 and memory with the others.

        Args:
            library: What TVM exported for aarch64.
            arguments: Of the kernel, in order; they are filled with seeded noise.
            name: Of the PrimFunc.
            outputs: Where to write all tensors after the run, one after the other, or None.
            timeout: Seconds that it may run, or None.
            threads: Of the board.

        Raises:
            ProgramError: The kernel crashed or refused its arguments.
            subprocess.TimeoutExpired: It took longer.
        """
        run = self._trace(library, arguments, name, outputs, timeout, threads)
        shared = self.parameters.but(sharers=threads)
        found = estimate(Program(run), shared, 1, lambda _path, _function: name, {})
        if threads == 1:
            return found
        starts = found.regions * shared.fork_ns * 1e-9 * shared.clock_hz
        whole = replace(found.whole, cycles=found.whole.cycles + starts)
        return replace(found, whole=whole, threads=threads)

    def seconds(
        self,
        library: Path,
        arguments: Sequence[Argument],
        outputs: Path | None = None,
        timeout: float | None = None,
        threads: int = 1,
    ) -> float:
        """Give the time of `main` alone, in half the time; arguments and errors as above."""
        if threads > 1:  # parallel regions are found by their names
            return self(library, arguments, "main", outputs, timeout, threads).seconds
        run = self._trace(library, arguments, "main", outputs, timeout, threads)
        return seconds(Program(run), self.parameters)

    def _trace(
        self, library: Path, arguments: Sequence[Argument], name: str, outputs: Path | None,
        timeout: float | None, threads: int,
    ) -> Trace:  # fmt: skip
        command = [str(self.guest), str(library), f"__tvm_ffi_{name}"]
        command += [str(outputs or "-"), str(threads)]
        settings = Settings(board=self.board, window=_WINDOW, most=_WINDOWS, timeout=timeout)
        return trace([*command, *(a.describe() for a in arguments)], settings)[0]


def kernel_estimator(
    parameters: Parameters = SHIPPED, progress: Progress = lambda _: None
) -> KernelEstimator:
    """Prepare the board and the guest program.

    Raises:
        ToolMissingError: QEMU, or something that the board needs, is missing.
        CompileError: Zig refuses the guest program.
    """
    guest = guest_program(_SOURCE, progress)
    return KernelEstimator(guest_board(parameters.clock_hz, progress), guest, parameters)


@dataclass(frozen=True)
class KernelTrial:
    """One run of a candidate kernel, as the tuner asks for it; goes to worker processes.

    Attributes:
        estimator: Runs it.
        timeout: Seconds that it may run; the start of a worker process is none of its business.
        threads: Of the board.
    """

    estimator: KernelEstimator
    timeout: float
    threads: int

    @property
    def libraries(self) -> tuple[str, ...]:
        """The board's libc and libm: which version of a function is called is seen in them."""
        place = self.estimator.board / "lib" / "aarch64-linux-gnu"
        return tuple(str(place / name) for name in ("libm.so.6", "libc.so.6"))

    def __call__(
        self, library: Path, arguments: Sequence[tuple[tuple[int, ...], str]], outputs: Path
    ) -> tuple[float | None, str]:
        """Give the seconds of a kernel called `main`, or None and why it failed.

        Raises:
            TimeoutError: It ran too long.
        """
        given = [Argument(shape, dtype) for shape, dtype in arguments]
        try:
            found = self.estimator.seconds(library, given, outputs, self.timeout, self.threads)
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(str(late)) from None
        except ProgramError as error:  # its message names files that will be gone
            if error.exit_code == _UNWRITTEN:
                return None, "no space left for the tensors of a kernel"
            return None, f"CrashError: the kernel failed under QEMU (exit code {error.exit_code})"
        return found, ""


class KernelModel:
    """The Cortex-A72 model as the tuner's machine (`tvmattend.tuning.estimated.Model`)."""

    def check(self, target: TargetSpec) -> None:
        """See that the target can be estimated, then find the tools, which takes a moment.

        Raises:
            TargetError: It is another core.
            TuningError: Nobody validated the model with so many threads.
            ToolMissingError: QEMU or LLVM's tools are missing.
        """
        if target.cpu != CORE:
            raise TargetError(
                f"the target's core is {target.cpu}; {OTHER_CORE}",
                f"estimate for --target {CORE}, or measure on a board with --rpc HOST:PORT",
            )
        if target.num_cores not in MODEL_ERROR:
            known = " or ".join(map(str, sorted(MODEL_ERROR)))
            raise TuningError(
                f"kernels are estimated for {known} threads, not for {target.num_cores}",
                f"give --threads {known}; `build` takes records of the nearest number of threads",
            )
        find_qemu()
        require_llvm()

    def describe(self, threads: int) -> dict[str, Any]:
        """Describe the machine for tuning records; another `digest` or `llvm`: other estimates."""
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).parent.iterdir()):
            if path.suffix in {".c", ".h", ".py"} and path.name not in _OTHERS:
                digest.update(path.name.encode() + path.read_bytes())
        return {
            "core": CORE,
            "model": f"tvmattend.machine {tvmattend.__version__}",
            "cores": CORES,
            "clock_mhz": SHIPPED.clock_hz / 1e6,
            "governor": "",
            "emulated": False,
            "digest": digest.hexdigest()[:16],
            "llvm": llvm_version(),
            "model_error": MODEL_ERROR[threads],
        }

    def open(self, timeout: float, threads: int) -> KernelTrial:
        """Prepare the board and the guest program; errors as those of `kernel_estimator`."""
        return KernelTrial(kernel_estimator(), timeout, threads)
