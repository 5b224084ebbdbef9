# SPDX-License-Identifier: Apache-2.0
"""What a place to measure on gives and raises: the words that benches, lanes and the run share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tvmattend.tuning.record import Origin, Status
from tvmattend.tuning.tasks import Task

# The line that an error gets when a kernel took its process along.
CRASHED = "CrashError: the process that ran the kernel died"


@dataclass(frozen=True)
class Candidate:
    """A point of a task, scheduled.

    Attributes:
        task: The kernel.
        point: The value of every knob.
        schedule: The `tvm.s_tir.Schedule`; None if the point could not be scheduled.
        error: Why it could not; empty otherwise.
    """

    task: Task
    point: Mapping[str, int]
    schedule: Any
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: times, or the whole text of what went wrong.

    Attributes:
        status: As in the record.
        run_secs: Figures; empty for a failure.
        error: What went wrong.
        conditions: Of the board, `before` and `after`.
        disturbed: Why the figures should be taken again; empty if they are good.
        rest: Whether the machine should rest before that.
        machine: What was measured, where that may differ from trial to trial.
        quarantined: Whether the kernel took the board down.
        sent: How often it was sent.
        away: Seconds for which the board has been asked in vain since; None if it is there.
    """

    status: Status
    run_secs: tuple[float, ...] = ()
    error: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    disturbed: str = ""
    rest: bool = False
    machine: Mapping[str, Any] | None = None
    quarantined: bool = False
    sent: int = 1
    away: float | None = None


@dataclass(frozen=True)
class Repetition:
    """How often a kernel is called: `repeat` figures, each the mean of `number` calls or more.

    Attributes:
        number: Calls in one figure, at least.
        repeat: Figures; the record keeps them all.
        min_repeat_ms: Calls go on until a figure took that long.
        timeout: Seconds for building a kernel, and again for measuring it.
    """

    number: int
    repeat: int
    min_repeat_ms: int
    timeout: float


@dataclass(frozen=True)
class Artifact:
    """A kernel that is built and waits to be measured.

    Attributes:
        path: The library.
        args_info: Its arguments, MetaSchedule's `ArgInfo`s.
        flops: Floating-point operations of a call; 0 if unknown.
    """

    path: str
    args_info: Any
    flops: float = 0.0


class BoardLostError(Exception):
    """The board does not answer, or was started anew; the text says how that showed.

    Args:
        reason: The text.
        during_kernel: Whether that was while the kernel ran, which may be the reason.
        asked: Seconds for which it has been asked in vain since.
        sent: Whether there was a session, so that the kernel may have been sent.
    """

    def __init__(
        self, reason: str, during_kernel: bool = True, asked: float = 0.0, sent: bool = True
    ) -> None:
        super().__init__(reason)
        self.during_kernel = during_kernel
        self.asked = asked
        self.sent = sent


class LinkBrokenError(Exception):
    """The board is well, but the connection broke or garbled what was said, or its disk is full.

    Args:
        reason: The text.
        sent: Whether there was a session, so that the kernel may have been sent.
        full: Whether it is the disk.
    """

    def __init__(self, reason: str, sent: bool = True, full: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.full = full


class BoardRefusedError(Exception):
    """There is no board for the kernel now, or only one that is not used; it is as it was."""


class Bench(Protocol):
    """A place where one kernel at a time is measured."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def run(self, artifact: Artifact, hot_too: bool = False) -> Outcome:
        """Time one kernel.

        Args:
            artifact: The kernel; it stays, for another attempt.
            hot_too: Whether to measure although the machine is throttled.

        Raises:
            BoardLostError: The board is gone.
            LinkBrokenError: The connection broke; the kernel is not to blame.
        """

    def answers(self, seconds: float) -> bool:
        """Whether the machine can take another kernel; asks no longer than that."""


class Ending(Protocol):
    """Something that a process belongs to."""

    def end(self) -> None:
        """Kill the process, or forget it if it is killed; from whatever thread."""


class Measurer(Protocol):
    """A machine that candidates are built for and timed on, one after the other."""

    @property
    def origin(self) -> Origin:
        """What its times are worth."""

    @property
    def machine(self) -> Mapping[str, Any]:
        """Its description for the records."""

    def build(self, candidates: Sequence[Candidate]) -> list[Artifact | Outcome]:
        """Build a batch; a failure takes the place of its artifact."""

    def run(self, artifact: Artifact, hot_too: bool = False) -> Outcome:
        """Time one kernel; see `Bench.run`."""

    def discard(self, artifact: Artifact) -> None:
        """Remove a kernel that was measured."""

    def answers(self, seconds: float) -> bool:
        """Whether the machine can take another kernel; see `Bench.answers`."""

    def close(self) -> None:
        """End all worker processes and remove what was built."""
