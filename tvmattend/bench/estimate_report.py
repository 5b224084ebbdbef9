# SPDX-License-Identifier: Apache-2.0
"""What a comparison of estimates found: plain data and a table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmattend.bench.report import Absent
from tvmattend.text import how_many, table

if TYPE_CHECKING:
    from tvmattend.machine.estimate import Estimate


@dataclass(frozen=True)
class Estimated:
    """A runtime that was estimated.

    Attributes:
        runtime: Its name.
        version: Of its aarch64 wheel, or ours.
        estimate: Of one inference.
        max_rel_error: max|y - ref| / max|ref| of its output under QEMU, against PyTorch here.
        peer: Whether a user could pick it instead.
    """

    runtime: str
    version: str
    estimate: "Estimate"
    max_rel_error: float
    peer: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the parts: their names are those of C++ functions."""
        data = self.estimate.to_json()
        kept = (
            "cycles", "ms", "instructions", "fma_utilisation", "l1d_misses", "l2_misses",
            "dram_bytes", "parallel_regions", "bound",
        )  # fmt: skip
        return {
            "runtime": self.runtime,
            "version": self.version,
            "peer": self.peer,
            **{name: data[name] for name in kept},
            "max_rel_error": self.max_rel_error,
        }


@dataclass(frozen=True)
class EstimatedComparison:
    """Runtimes on one network, on a Cortex-A72 that nobody has.

    Attributes:
        model: Name of the network.
        threads: Of every runtime.
        results: Those estimated, ours first, then in the order of the request.
        absent: Those that were not, and why.
        reference: What the outputs were compared with.
    """

    model: str
    threads: int
    results: tuple[Estimated, ...]
    absent: tuple[Absent, ...]
    reference: str

    @property
    def ours(self) -> Estimated:
        """tvmattend's own result."""
        return self.results[0]

    @property
    def fastest_peer(self) -> Estimated | None:
        """The peer with the fewest cycles."""
        peers = [result for result in self.results if result.peer]
        return min(peers, key=lambda result: result.estimate.whole.cycles, default=None)

    @property
    def ratio(self) -> float | None:
        """The fastest peer's cycles by ours."""
        peer = self.fastest_peer
        if peer is None:
            return None
        return peer.estimate.whole.cycles / self.ours.estimate.whole.cycles

    @property
    def model_error(self) -> float:
        """Mean error of the model on networks that no fit has seen."""
        from tvmattend.machine.parameters import MODEL_ERROR

        return MODEL_ERROR[self.threads]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        peer = self.fastest_peer
        return {
            "model": self.model,
            "estimated": True,
            "core": "cortex-a72",
            "threads": self.threads,
            "clock_hz": self.ours.estimate.parameters.clock_hz,
            "model_error": self.model_error,
            "dtype": "float32",
            "reference": self.reference,
            "results": [result.to_json() for result in self.results],
            "not_estimated": [
                {"runtime": entry.runtime, "state": entry.state, "reason": entry.reason}
                for entry in self.absent
            ],
            "fastest_peer": None if peer is None else peer.runtime,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
        }

    def lines(self) -> list[str]:
        """Give the table for a terminal."""
        clock = self.ours.estimate.parameters.clock_hz / 1e9
        threads = how_many(self.threads, "thread")
        rows = [self._row(result) for result in self.results]
        rows += [
            (entry.runtime, entry.version or "-", "-", *[""] * (len(_HEADINGS) - 3))
            for entry in self.absent
        ]
        error = f"{100 * self.model_error:.1f} % (benchmarks/a72_validation.py)"
        lines = [
            f"{self.model}, fp32, {threads}, outputs against {self.reference}",
            f"ESTIMATED for a Cortex-A72 at {clock:.1f} GHz; mean error of such estimates: {error}",
            "",
            *table(_HEADINGS, rows, left=(0, 1)),
        ]
        lines += [f"{entry.runtime}: {entry.state}: {entry.reason}" for entry in self.absent]
        return [*lines, "", self.verdict()]

    def verdict(self) -> str:
        """Say in a line how ours stands against the fastest peer."""
        peer, ratio = self.fastest_peer, self.ratio
        if peer is None or ratio is None:
            return "no peer was estimated"
        return f"fastest peer: {peer.runtime}; tvmattend is {ratio:.2f}x its speed (estimated)"

    def _row(self, result: Estimated) -> tuple[str, ...]:
        data = result.to_json()
        return (
            result.runtime,
            result.version,
            f"{data['cycles'] / 1e6:.1f}",
            f"{data['ms']:.1f}",
            f"{data['instructions'] / 1e6:.1f}",
            f"{100 * data['fma_utilisation']:.0f} %",
            f"{data['l1d_misses'] / 1e6:.2f}",
            f"{data['l2_misses'] / 1e6:.2f}",
            f"{data['dram_bytes'] / 1e6:.1f}",
            f"{data['cycles'] / self.ours.estimate.whole.cycles:.2f}",
            f"{result.max_rel_error:.1e}",
        )


_HEADINGS = (
    "runtime", "version", "M cycles", "ms", "M instr", "FMA", "M L1D miss", "M L2 miss",
    "MB DRAM", "x of ours", "error",
)  # fmt: skip
