# SPDX-License-Identifier: Apache-2.0
"""What a profile found: plain data and a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmattend.bench.report import busy_notes
from tvmattend.bench.roofline import Roofline
from tvmattend.target import TargetSpec
from tvmattend.text import table


@dataclass(frozen=True)
class Kernel:
    """One kernel call of an inference.

    Attributes:
        name: The PrimFunc.
        seconds: In the inference, median.
        again: The same call run again on the spot, the best of some; None in a standalone library.
        moved: Bytes of its inputs, weights and output.
        flops: Operations it executes.
        modules: PyTorch modules; empty for a kernel that the compiler put in.
        family: Of its design space.
    """

    name: str
    seconds: float
    again: float | None
    moved: int
    flops: float
    modules: tuple[str, ...]
    family: str

    def where(self) -> str:
        """The modules in words."""
        return ", ".join(path or "(network)" for path in self.modules) or "(compiler)"


@dataclass(frozen=True)
class Profile:
    """Where the time of an inference goes.

    Attributes:
        model: Name of the network.
        target: What it was built for, with the threads that ran.
        machine: What it is; see `Profiled`.
        machine_text: The same in a line.
        machine_notes: What a reader must know of it.
        roofline: The machine's limits.
        inference: Seconds of a whole inference without instrument, median.
        best_inference: The best of them.
        best_kernels: Sum of the kernels' seconds in the best instrumented inference.
        builtin: Seconds of an instrumented inference in the virtual machine's own functions.
        runs: Instrumented inferences.
        kernels: In the order of the calls.
        others: Share of the cores' time that went to other processes; None if unknown.
    """

    model: str
    target: TargetSpec
    machine: dict[str, Any]
    machine_text: str
    machine_notes: tuple[str, ...]
    roofline: Roofline
    inference: float
    best_inference: float
    best_kernels: float
    builtin: float
    runs: int
    kernels: tuple[Kernel, ...]
    others: float | None = None

    @property
    def total(self) -> float:
        """Sum of the kernels' seconds."""
        return sum(kernel.seconds for kernel in self.kernels)

    def bound(self, kernel: Kernel) -> tuple[str, float]:
        """What bounds a kernel and the share of that limit that it reaches."""
        kind, least = self.roofline.bound(kernel.flops, kernel.moved)
        return kind, least / kernel.seconds

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain data for `--json`; of the kernels the `top` longest if so many are wanted."""
        return {
            "model": self.model,
            "target": self.target.to_json(),
            "threads": self.target.num_cores,
            "machine": self.machine,
            "peak_gflops": round(self.roofline.flops / 1e9, 2),
            "bandwidth_gbs": round(self.roofline.bandwidth / 1e9, 2),
            "bandwidth_footprint_bytes": self.roofline.footprint,
            "runs": self.runs,
            "other_load": None if self.others is None else round(self.others, 3),
            "inference_ms": round(self.inference * 1e3, 4),
            "kernels_ms": round(self.total * 1e3, 4),
            "vm_ms": round(self.builtin * 1e3, 4),
            "best_inference_ms": round(self.best_inference * 1e3, 4),
            "best_kernels_ms": round(self.best_kernels * 1e3, 4),
            "explained": round(self.best_kernels / self.best_inference, 4),
            "kernels": [self._kernel_json(kernel) for kernel in self._longest(top)],
            "modules": [
                {"module": module, "ms": round(seconds * 1e3, 4), "share": round(share, 4)}
                for module, seconds, share in self.by_module()
            ],
        }

    def notes(self) -> list[str]:
        """What a reader must know of the figures."""
        notes = [*self.machine_notes, *busy_notes(self.others)]
        above = {
            "winograd" in kernel.family
            for kernel in self.kernels
            if kernel.flops > kernel.seconds * self.roofline.flops
        }
        if True in above:
            notes.append(
                "more than the peak: additions of Winograd's transforms count too, and have "
                "pipelines beside those of the multiply-adds that the peak is made of"
            )
        if False in above:
            notes.append(
                "more than the peak without Winograd: lanes that only fill a vector count too, or "
                "something took the cores while the peak was measured"
            )
        return notes

    def by_module(self) -> list[tuple[str, float, float]]:
        """Sum the kernels of each module, to a depth of `_DEPTH`: (path, seconds, share).

        A kernel of several modules counts for the first.
        """
        sums: dict[str, float] = {}
        for kernel in self.kernels:
            path = kernel.modules[0] if kernel.modules else "(compiler)"
            short = ".".join(path.split(".")[:_DEPTH]) or "(network)"
            sums[short] = sums.get(short, 0.0) + kernel.seconds
        return [(path, seconds, seconds / self.total) for path, seconds in sums.items()]

    def _kernel_json(self, kernel: Kernel) -> dict[str, Any]:
        bound, flops = self.bound(kernel), kernel.flops
        return {
            "kernel": kernel.name,
            "modules": list(kernel.modules),
            "family": kernel.family,
            "ms": round(kernel.seconds * 1e3, 5),
            "again_ms": None if kernel.again is None else round(kernel.again * 1e3, 5),
            "share": round(kernel.seconds / self.total, 4),
            "flops": flops,
            "bytes": kernel.moved,
            "gflops": round(flops / kernel.seconds / 1e9, 2),
            "percent_of_peak": round(100 * flops / kernel.seconds / self.roofline.flops, 1),
            "bound": bound[0],
            "percent_of_bound": round(100 * bound[1], 1),
        }

    def lines(self, top: int | None = None) -> list[str]:
        """Give the table for a terminal, the longest first if only the `top` are wanted."""
        rows = [self._row(kernel) for kernel in self._longest(top)]
        return [
            f"{self.model} for {self.target.describe()}",
            self.machine_text,
            self._limits(),
            "",
            *table(_HEADINGS, rows, left=(6, 7, 8)),
            "",
            *self._account(),
        ]

    def _longest(self, top: int | None) -> Sequence[Kernel]:
        """All kernels in the order of the calls, or the `top` longest, the longest first."""
        if top is None:
            return self.kernels
        return sorted(self.kernels, key=lambda kernel: -kernel.seconds)[:top]

    def _limits(self) -> str:
        limit = self.roofline
        return (
            f"the machine reaches {limit.flops / 1e9:.1f} GFLOP/s and {limit.bandwidth / 1e9:.1f} "
            f"GB/s from {limit.footprint / 1e6:.1f} MB, with {self.target.num_cores} of its cores"
        )

    def _account(self) -> list[str]:
        """Compare the parts with the whole."""
        calls = f"{len(self.kernels)} kernel calls"
        share = f"{self.best_kernels / self.best_inference:.1%} explained"
        whole = "a whole inference without instrument"
        typical = f"{calls} {self.total * 1e3:.3f} ms"
        if self.builtin:  # a standalone library has none
            typical += f", the virtual machine's own {self.builtin * 1e3:.3f} ms"
        between = 1e6 * (self.best_inference - self.best_kernels)
        best = f"{calls} {self.best_kernels * 1e3:.3f} ms, between them {between:.1f} us"
        return [
            f"medians  {typical}, {whole} {self.inference * 1e3:.3f} ms",
            f"best     {best}, {whole} {self.best_inference * 1e3:.3f} ms: {share}",
        ]

    def _row(self, kernel: Kernel) -> tuple[str, ...]:
        bound = self.bound(kernel)
        rate = kernel.flops / kernel.seconds
        return (
            f"{kernel.seconds * 1e6:.1f}",
            f"{kernel.seconds / self.total:.1%}",
            "-" if kernel.again is None else f"{kernel.again * 1e6:.1f}",
            f"{rate / 1e9:.1f}",
            f"{rate / self.roofline.flops:.0%}",
            f"{bound[1]:.0%}",
            bound[0],
            kernel.where(),
            kernel.name,
        )


_HEADINGS = (
    "us", "share", "again us", "GFLOP/s", "of peak", "of bound", "bound", "module", "kernel",
)  # fmt: skip
_DEPTH = 3  # names of a module's path that sums by module keep
