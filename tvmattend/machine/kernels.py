# SPDX-License-Identifier: Apache-2.0
"""The estimate of one compiled kernel, quick enough to stand where a measurement would."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tvmattend.cache import Progress, prepared
from tvmattend.device.emulated import EmulatedBoard, prepare
from tvmattend.errors import CompileError
from tvmattend.machine.estimate import Estimate, estimate
from tvmattend.machine.parameters import SHIPPED, Parameters
from tvmattend.machine.replay import Program
from tvmattend.machine.tracing import Settings, trace

_SOURCE = Path(__file__).with_name("kernel_guest.c")
_TARGET = "aarch64-linux-gnu.2.28"
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
        board: Where the C library is.
        guest: The program that runs a kernel.
        parameters: Of the model.
    """

    board: EmulatedBoard
    guest: Path
    parameters: Parameters = SHIPPED

    def __call__(
        self,
        library: Path,
        arguments: Sequence[Argument],
        name: str = "main",
        outputs: Path | None = None,
    ) -> Estimate:
        """Run a kernel twice, the first time to warm the caches; estimate the second, one thread.

        Args:
            library: What TVM exported for aarch64.
            arguments: Of the kernel, in order; they are filled with seeded noise.
            name: Of the PrimFunc.
            outputs: Where to write all tensors after the run, one after the other, or None.

        Raises:
            ProgramError: The kernel crashed or refused its arguments.
        """
        command = [str(self.guest), str(library), f"__tvm_ffi_{name}", str(outputs or "-")]
        python = self.board.minimal_python()
        settings = Settings(
            sysroot=python.root, clock_hz=self.parameters.clock_hz, window=256, period=1024
        )
        run, _ = trace([*command, *(a.describe() for a in arguments)], settings)
        return estimate(Program(run), self.parameters, 1, lambda _path, _function: name, {})


def kernel_estimator(
    parameters: Parameters = SHIPPED, progress: Progress = lambda _: None
) -> KernelEstimator:
    """Prepare the board and the guest program.

    Raises:
        ToolMissingError: QEMU, or something that the board needs, is missing.
        CompileError: Zig refuses the guest program.
    """
    stamp = {"source": hashlib.sha256(_SOURCE.read_bytes()).hexdigest(), "target": _TARGET}
    place = prepared("machine-kernels", stamp, _build, progress)
    return KernelEstimator(prepare(progress), place / "kernel_guest", parameters)


def _build(place: Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", _TARGET, "-O2", "-rdynamic"]
    done = subprocess.run(
        [*command, "-o", str(place / "kernel_guest"), str(_SOURCE), "-ldl"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        raise CompileError(
            f"Zig cannot compile {_SOURCE.name}: {(lines or ['no message'])[0]}",
            "`pip install ziglang` brings a version that is known to work",
        )
