# SPDX-License-Identifier: Apache-2.0
"""What a tuning run is asked for, and what it tells while it goes on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tvmattend.device.serving.wire import LONGEST_SECONDS
from tvmattend.errors import TuningError
from tvmattend.tuning.record import Record

if TYPE_CHECKING:
    from tvmattend.tuning.report import TunePlan, TuneReport


@dataclass(frozen=True)
class TuneOptions:
    """How much to try, and how to measure.

    Attributes:
        trials: Trials of the whole network, those that the records already hold included.
        trials_per_task: Most trials of one kernel, likewise.
        timeout: Seconds to build a kernel, and again to measure it.
        number: Calls in one figure, at least.
        repeat: Figures of a trial; their median counts.
        min_repeat_ms: Milliseconds that a figure takes at least.
        seed: Of the search.
        board_wait: Seconds that a board which went away is waited for.
    """

    trials: int = 256
    trials_per_task: int = 64
    timeout: float = 30.0
    number: int = 3
    repeat: int = 3
    min_repeat_ms: int = 50
    seed: int = 0
    board_wait: float = 120.0

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            TuningError: One is out of range.
        """
        for option, value, least in (
            ("--trials", self.trials, 1),
            ("--trials-per-task", self.trials_per_task, 1),
            ("--timeout", self.timeout, 1),
            ("--number", self.number, 1),
            ("--repeat", self.repeat, 1),
            ("--min-repeat-ms", self.min_repeat_ms, 0),
            ("--seed", self.seed, 0),
            ("--board-wait", self.board_wait, 0),
        ):
            if not least <= value < math.inf:  # also refuses NaN
                raise TuningError(f"{option} {value} is out of range", f"give {least} or more")
        for option, seconds in (("--timeout", self.timeout), ("--board-wait", self.board_wait)):
            if seconds > LONGEST_SECONDS:
                raise TuningError(f"{option} {seconds} is out of range", "give a week or less")


@dataclass(frozen=True)
class Stage:
    """A step before the trials that takes a while."""

    text: str


@dataclass(frozen=True)
class Note:
    """Something the user should know before the trials."""

    text: str


@dataclass(frozen=True)
class Planned:
    """The tasks are known; trials begin."""

    plan: "TunePlan"


@dataclass(frozen=True)
class Building:
    """A batch of kernels is being built.

    Attributes:
        tasks: Positions of their tasks, each once.
        count: Number of kernels.
    """

    tasks: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class TrialDone:
    """A record was written.

    Attributes:
        record: The record.
        task: Position of its task.
        done: Trials of the network that the records hold now.
        best_secs: Best time of the task so far; infinity before the first success.
    """

    record: Record
    task: int
    done: int
    best_secs: float


@dataclass(frozen=True)
class BoardGone:
    """The board does not answer; it is waited for.

    Attributes:
        wait: Seconds until the next attempt.
        attempt: From 1.
        attempts: How many there will be.
        reason: What the connection said.
        board: Its address.
    """

    wait: float
    attempt: int
    attempts: int
    reason: str
    board: str = "the board"


@dataclass(frozen=True)
class BoardBack:
    """The board answers again; the trial is repeated."""

    board: str = "the board"


@dataclass(frozen=True)
class Repeated:
    """The connection broke while the board is well; the trial is repeated.

    Attributes:
        board: Its address.
        reason: How it showed.
        wait: Seconds until then.
    """

    board: str
    reason: str
    wait: float


@dataclass(frozen=True)
class BoardHot:
    """Figures are not to be trusted and are taken again.

    Attributes:
        board: Its address.
        reason: What disturbed them.
        wait: Seconds that the board rests before.
    """

    board: str
    reason: str
    wait: float


@dataclass(frozen=True)
class BoardJoined:
    """A board of the fleet is met for the first time.

    Attributes:
        board: Its address.
        machine: What it is.
        difference: In what it differs from the first board; empty if in nothing.
    """

    board: str
    machine: str
    difference: str


@dataclass(frozen=True)
class BoardLeft:
    """A board of the fleet is gone, or is not used.

    Attributes:
        board: Its address.
        reason: Why.
    """

    board: str
    reason: str


@dataclass(frozen=True)
class Interrupted:
    """Ctrl-C: what was recorded until then. The interrupt goes on after the observer returns."""

    report: "TuneReport"


@dataclass(frozen=True)
class Failed:
    """The run cannot go on: what was recorded until then. The error is raised after that."""

    report: "TuneReport"


Event: TypeAlias = (
    Stage
    | Note
    | Planned
    | Building
    | TrialDone
    | BoardGone
    | BoardBack
    | Repeated
    | BoardHot
    | BoardJoined
    | BoardLeft
    | Interrupted
    | Failed
)
Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An observer that looks away."""
    del event
