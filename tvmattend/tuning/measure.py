# SPDX-License-Identifier: Apache-2.0
"""Candidates -> times: a builder, and benches to measure on, here or on a board."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.device.endpoint import Endpoint
from tvmattend.device.probe_kernel import build_probe
from tvmattend.target import TargetSpec
from tvmattend.tuning.bench import Artifact, Bench, Candidate, Outcome, Repetition
from tvmattend.tuning.board_bench import BoardBench
from tvmattend.tuning.record import Origin
from tvmattend.tuning.workshop import Workshop

if TYPE_CHECKING:
    from tvmattend.tuning.roster import Roster


class KernelMeasurer(Workshop):
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
        self._repetition = repetition
        self._endpoint = endpoint
        self._cross_compiler = cross_compiler
        super().__init__(target, repetition.timeout, cross_compiler)

    def _open(self) -> None:
        """Start what measures in `run`; what has an end goes to `_benches`."""
        if self._endpoint is not None:
            build_probe(self._target, self._probe, self._cross_compiler)
            self._bench: Bench = self.open_bench()
            return
        from tvmattend.tuning.local_bench import LocalBench

        bench = LocalBench(self._repetition, self._target.num_cores, self._place)
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
            self._place,
            hygiene=self.origin == "measured",
            examined=None if roster is None else roster.examined,
        )
        self._benches.append(bench)
        return bench

    @property
    def _probe(self) -> Path:
        return self._place / "probe.so"

    def build(self, candidates: Sequence[Candidate]) -> list[Artifact | Outcome]:
        """Build a batch, as many at once as there are cores; see `product`."""
        begun = [self.begin(candidate) for candidate in candidates]
        return [self.product(*pair) for pair in zip(candidates, begun, strict=True)]

    def run(self, artifact: Artifact, hot_too: bool = False) -> Outcome:
        """Time one kernel; the library stays until `discard`, for another attempt."""
        return self._bench.run(artifact, hot_too)

    def discard(self, artifact: Artifact) -> None:
        """Remove a library that is not needed any more."""
        Path(artifact.path).unlink(missing_ok=True)

    def answers(self, seconds: float) -> bool:
        """Whether the machine can take another kernel."""
        return self._bench.answers(seconds)
