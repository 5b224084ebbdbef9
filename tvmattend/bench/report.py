# SPDX-License-Identifier: Apache-2.0
"""What a comparison found: plain data, a table for a terminal, a table for a document."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tvmattend.bench.host import machine_line
from tvmattend.bench.timing import Timing, ratio, ratio_range
from tvmattend.errors import BenchmarkError, TvmattendError
from tvmattend.text import how_many, table

# Above this share of the cores' time, other processes make the figures doubtful.
BUSY = 0.05


@dataclass(frozen=True)
class Result:
    """A runtime that was timed.

    Attributes:
        runtime: Its name.
        version: As it calls itself.
        timing: All times.
        max_rel_error: Greatest max|y - ref| / max|ref| against PyTorch, over all samples.
        peer: Whether a user could pick it instead.
    """

    runtime: str
    version: str
    timing: Timing
    max_rel_error: float
    peer: bool


@dataclass(frozen=True)
class Absent:
    """A runtime that was not timed.

    Attributes:
        runtime: Its name.
        state: `missing`, `wrong` or `failed`.
        reason: One line; for a missing one the line that installs it.
        version: If it got so far.
        max_rel_error: If it got so far.
    """

    runtime: str
    state: str
    reason: str
    version: str | None = None
    max_rel_error: float | None = None

    @classmethod
    def failed(cls, runtime: str, error: TvmattendError) -> "Absent":
        """Tell of an error, and of what to do where that is not the same for all."""
        hint = "" if error.hint == error.remedy else f" ({error.hint})"
        return cls(runtime, "failed", f"{error}{hint}")


@dataclass(frozen=True)
class Comparison:
    """A comparison of runtimes on one network.

    Attributes:
        model: Name of the network.
        threads: Of every runtime.
        machine: From `describe_machine`.
        results: Those timed, ours first, then in the order of the request.
        absent: Those not timed.
        reference: What the outputs were compared with.
        rounds: Turns that each had.
        others: Share of the cores' time that went to other processes; None if unknown.
        records: Number of our kernels by the origin of their schedules.
        trials: That TVM's own pipeline was tuned with.
    """

    model: str
    threads: int
    machine: dict[str, Any]
    results: tuple[Result, ...]
    absent: tuple[Absent, ...]
    reference: str
    rounds: int
    others: float | None = None
    records: Mapping[str, int] = field(default_factory=dict)
    trials: int = 0

    @property
    def ours(self) -> Result:
        """tvmattend's own result."""
        return self.results[0]

    def timing(self, runtime: str) -> Timing:
        """Give the times of one.

        Raises:
            BenchmarkError: It was not timed.
        """
        for result in self.results:
            if result.runtime == runtime:
                return result.timing
        why = [
            f"{entry.state}: {entry.reason}" for entry in self.absent if entry.runtime == runtime
        ]
        raise BenchmarkError(f"{runtime} was not timed: {', '.join(why)}")

    @property
    def fastest_peer(self) -> Result | None:
        """The peer with the smallest median."""
        peers = [result for result in self.results if result.peer]
        return min(peers, key=lambda result: result.timing.median, default=None)

    @property
    def ratio(self) -> float | None:
        """The fastest peer's median by ours."""
        peer = self.fastest_peer
        return None if peer is None else ratio(peer.timing, self.ours.timing)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for files."""
        peer, factor = self.fastest_peer, self.ratio
        between = ratio_range(peer.timing, self.ours.timing) if peer else None
        return {
            "model": self.model,
            "threads": self.threads,
            "machine": self.machine,
            "dtype": "float32",
            "reference": self.reference,
            "rounds": self.rounds,
            "records": dict(self.records),
            "trials": self.trials,
            "other_load": None if self.others is None else round(self.others, 3),
            "results": [_result_json(result) for result in self.results],
            "not_timed": [_absent_json(entry) for entry in self.absent],
            "fastest_peer": peer.runtime if peer else None,
            "ratio": None if factor is None else round(factor, 4),
            "ratio_quartiles": [round(value, 4) for value in between] if between else None,
        }

    def notes(self) -> list[str]:
        """What a reader must know of the figures."""
        notes = busy_notes(self.others)
        if self.fastest_peer is None:
            notes.append("no peer was timed: there is nothing to compare with")
        return notes

    def lines(self) -> list[str]:
        """Give the table for a terminal."""
        rows = [self._row(result) for result in self.results]
        lines = [
            self.title(),
            machine_line(self.machine),
            "",
            *table(_HEADINGS, rows, left=(0, 1)),
        ]
        lines += [f"{entry.runtime}: {entry.state}: {entry.reason}" for entry in self.absent]
        return [*lines, "", *self.verdict()]

    def markdown(self) -> list[str]:
        """Give the table for a document."""
        rows = [_HEADINGS, *(self._row(result) for result in self.results)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|---|---|" + "---:|" * (len(_HEADINGS) - 2))
        lines += [""] if self.absent else []
        lines += [f"- {entry.runtime}: {entry.state}: {entry.reason}" for entry in self.absent]
        return [*lines, "", *self.verdict()]

    def verdict(self) -> list[str]:
        """Say how ours stands against the fastest peer, and how it was built."""
        counts = ", ".join(f"{count} {origin}" for origin, count in self.records.items() if count)
        built = [f"schedules of tvmattend's kernels: {counts}"] if counts else []
        peer, factor = self.fastest_peer, self.ratio
        if peer is None or factor is None:
            return ["no peer was timed", *built]
        low, high = ratio_range(peer.timing, self.ours.timing)
        line = (
            f"fastest peer: {peer.runtime}; tvmattend is {factor:.2f}x its speed "
            f"(middle half of the rounds: {low:.2f} to {high:.2f})"
        )
        return [line, *built]

    def title(self) -> str:
        """Say what was timed."""
        threads = how_many(self.threads, "thread")
        turns = f"{self.rounds} rounds, outputs against {self.reference}"
        return f"{self.model}, fp32, {threads}, {turns}"

    def _row(self, result: Result) -> tuple[str, ...]:
        times = result.timing
        return (
            result.runtime,
            result.version,
            f"{times.median * 1e3:.3f}",
            f"{times.least * 1e3:.3f}",
            f"{times.greatest * 1e3:.3f}",
            f"{times.spread:.1%}",
            f"{ratio(times, self.ours.timing):.2f}",
            f"{result.max_rel_error:.1e}",
        )


def busy_notes(others: float | None) -> list[str]:
    """Say so where other processes made figures doubtful.

    Args:
        others: Share of the cores' time that they had; None if unknown.
    """
    if others is None or others <= BUSY:
        return []
    note = f"other processes used {others:.0%} of these cores meanwhile"
    return [f"{note}: repeat it on a quiet machine"]


_HEADINGS = (
    "runtime", "version", "median ms", "min ms", "max ms", "spread", "x of ours", "error",
)  # fmt: skip


def _result_json(result: Result) -> dict[str, Any]:
    times = result.timing
    return {
        "runtime": result.runtime,
        "version": result.version,
        "median_ms": round(times.median * 1e3, 4),
        "min_ms": round(times.least * 1e3, 4),
        "max_ms": round(times.greatest * 1e3, 4),
        "max_rel_error": result.max_rel_error,
        "spread": round(times.spread, 4),
        "runs": len(times.seconds),
        "round_medians_ms": [round(value * 1e3, 4) for value in times.by_round()],
        "peer": result.peer,
    }


def _absent_json(entry: Absent) -> dict[str, Any]:
    return {
        "runtime": entry.runtime,
        "state": entry.state,
        "reason": entry.reason,
        "version": entry.version,
        "max_rel_error": entry.max_rel_error,
    }
