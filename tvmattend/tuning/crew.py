# SPDX-License-Identifier: Apache-2.0
"""Who does the trials of a run: takes candidates, gives back what became of them, in some order.

`Alone` builds a batch and then measures it, one kernel after the other, in the caller's thread: on
this machine a compiler that works beside a measurement would spoil it. Boards have a `Fleet`, a
model of a machine has `Estimators`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvmattend.tuning.bench import Artifact, Candidate, Measurer, Outcome
from tvmattend.tuning.patience import BOARD_LOST, BoardAwayError, Patience
from tvmattend.tuning.record import Origin, one_line


@dataclass(frozen=True)
class Finished:
    """A trial that is over.

    Attributes:
        candidate: What was tried.
        outcome: What became of it.
        wall_secs: Seconds that it took, its share of building included.
        fatal: Why the run cannot go on after it; empty if it can.
    """

    candidate: Candidate
    outcome: Outcome
    wall_secs: float
    fatal: str = ""


class Crew(Protocol):
    """Does trials."""

    @property
    def origin(self) -> Origin:
        """What its times are worth."""

    @property
    def machine(self) -> Mapping[str, Any]:
        """Description of the machine, for records whose outcome names none."""

    @property
    def ahead(self) -> int:
        """With so many trials under way, or fewer, it wants more; 0 decides each batch by all."""

    def submit(self, batch: Sequence[Candidate]) -> None:
        """Take candidates."""

    def next(self) -> Finished:
        """Wait for a trial that was submitted to be over.

        Raises:
            BoardAwayError: The board did not come back, after the trial before or ahead of this.
        """


def lost_outcome(away: BoardAwayError) -> Outcome:
    """What is recorded of a kernel that was sent, and whose board went away and stayed away."""
    return Outcome("run-error", error=f"{BOARD_LOST}: {one_line(str(away))}")


class Alone:
    """One machine, one thing at a time.

    Args:
        measurer: Builds and measures.
        patience: How long to wait for a machine that went away.
    """

    ahead = 0

    def __init__(self, measurer: Measurer, patience: Patience) -> None:
        self._measurer = measurer
        self._bench = _OneBench(measurer)
        self._patience = patience
        self._batch: list[Candidate] = []
        self._built: list[Artifact | Outcome] = []
        self._build_secs = 0.0
        self._away: tuple[str, float] | None = None  # why, and since when it is asked

    @property
    def origin(self) -> Origin:
        """What its times are worth."""
        return self._measurer.origin

    @property
    def machine(self) -> Mapping[str, Any]:
        """Description of the machine."""
        return self._measurer.machine

    def submit(self, batch: Sequence[Candidate]) -> None:
        """Take a batch, to be built when it is its turn."""
        self._batch += batch

    def next(self) -> Finished:
        """Do a trial, after a board that went away in the last one came back."""
        if self._away is not None:
            (reason, since), self._away = self._away, None
            if not self._patience.wait_for(self._bench, reason, time.monotonic() - since):
                raise BoardAwayError(reason)
        begun = time.monotonic()
        if not self._built:
            self._built = self._measurer.build(self._batch)
            self._build_secs = (time.monotonic() - begun) / len(self._batch)
            begun = time.monotonic()
        candidate, product = self._batch.pop(0), self._built.pop(0)
        fatal = ""
        if isinstance(product, Outcome):
            outcome = product
        else:
            try:
                outcome = self._patience.measure(self._bench, product)
            except BoardAwayError as away:
                if not away.sent:
                    raise
                outcome, fatal = lost_outcome(away), one_line(str(away))
            finally:
                self._measurer.discard(product)
            if outcome.away is not None:
                self._away = one_line(outcome.error), time.monotonic() - outcome.away
        return Finished(candidate, outcome, self._build_secs + time.monotonic() - begun, fatal)


@dataclass(frozen=True)
class Nobody:
    """The crew of a run with nothing to do: no process is started.

    Attributes:
        origin: What the times of its records are worth.
        machine: Description of the machine.
    """

    origin: Origin
    machine: Mapping[str, Any]
    ahead = 0

    def submit(self, batch: Sequence[Candidate]) -> None:
        """Refuse."""
        raise AssertionError(f"{len(batch)} trials that were not planned")

    def next(self) -> Finished:
        """Refuse."""
        raise AssertionError("a trial that was not planned")


class _OneBench:
    """A measurer as a bench."""

    name = "the board"

    def __init__(self, measurer: Measurer) -> None:
        self._measurer = measurer
        self.answers = measurer.answers

    def run(self, artifact: Artifact, hot_too: bool = False) -> Outcome:
        """Time one kernel."""
        return self._measurer.run(artifact, hot_too)
