# SPDX-License-Identifier: Apache-2.0
"""What a tuning run is going to do, and what it did: typed, printable, and as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.target import TargetSpec
from tvmattend.text import duration, micro, speed, table
from tvmattend.tuning.incidents import Incidents
from tvmattend.tuning.machine import describe_machine
from tvmattend.tuning.record import Origin

if TYPE_CHECKING:
    from tvmattend.transform import FusionReport

EMULATED_NOTE = "times from an emulated board say nothing about silicon"


@dataclass(frozen=True)
class TaskPlan:
    """One row of a plan.

    Attributes:
        name: The kernel's name.
        key: Its identity.
        kernel: Family of its design space.
        weight: Calls in one inference.
        flops: Floating-point operations of one call.
        points: Size of the design space.
        trials: Trials that the run's own file holds.
        records: Records anywhere, by origin.
    """

    name: str
    key: str
    kernel: str
    weight: int
    flops: float
    points: int
    trials: int
    records: Mapping[Origin, int]


def reached(new: int, done: int, path: Path) -> str:
    """Where the trials of a run that ended early are.

    Args:
        new: Trials of this run.
        done: Trials that the file holds.
        path: The file; it may not be there yet.
    """
    if not done:
        return "no trial is recorded"
    return f"{new} trials of this run ({done} in all) are in `{path}`"


@dataclass(frozen=True)
class TunePlan:
    """What a run would do.

    Attributes:
        model: Name of the network.
        target: The machine that is tuned for.
        origin: What the times will be worth; None without a board to measure on.
        machine: The machine that is measured; empty without one.
        path: The file that records go to; None while the origin is unknown.
        tasks: The kernels in the order of their first call.
        trials: Trials that are still to run.
        done: Trials that the file holds already.
        seconds: Estimated duration.
        notes: Lines about the records that were found.
        fusion: What fusion made of the network; None where nobody asked.
    """

    model: str
    target: TargetSpec
    origin: Origin | None
    machine: Mapping[str, Any]
    path: Path | None
    tasks: tuple[TaskPlan, ...]
    trials: int
    done: int
    seconds: float
    notes: tuple[str, ...] = ()
    fusion: "FusionReport | None" = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "target": self.target.to_json(),
            "origin": self.origin,
            "machine": dict(self.machine),
            "fusion": None if self.fusion is None else self.fusion.to_json(),
            "records": None if self.path is None else str(self.path),
            "trials": self.trials,
            "trials_recorded": self.done,
            "estimated_seconds": round(self.seconds, 1),
            "notes": list(self.notes),
            "tasks": [{**vars(task), "records": dict(task.records)} for task in self.tasks],
        }

    def __str__(self) -> str:
        rows = [
            (
                str(number),
                task.name,
                task.kernel,
                str(task.weight),
                f"{task.flops / 1e6:.2f}",
                str(task.points),
                ", ".join(f"{count} {origin}" for origin, count in task.records.items()) or "-",
            )
            for number, task in enumerate(self.tasks, start=1)
        ]
        header = ("#", "task", "kernel", "calls", "MFLOP", "points", "records")
        fusion = [] if self.fusion is None else self.fusion.table()
        lines = [
            f"model     {self.model}",
            f"target    {self.target.describe()}",
            f"machine   {describe_origin(self.origin, self.machine)}",
            f"records   {self.path if self.path is not None else '-'}",
            *(f"note      {note}" for note in self.notes),
            *(f"{'' if number else 'fusion':9} {line}" for number, line in enumerate(fusion)),
            "",
            *table(header, rows, left=(1, 2, 6)),
            "",
            f"{self.trials} trials to run, {self.done} recorded, about {duration(self.seconds)}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class TaskResult:
    """One row of a report.

    Attributes:
        name: The kernel's name.
        key: Its identity.
        kernel: Family of its design space.
        weight: Calls in one inference.
        flops: Floating-point operations of one call.
        points: Size of the design space.
        trials: Trials that the file holds.
        errors: Of them, failures.
        rejected: Points that could not be scheduled; they cost no trial.
        default_secs: Seconds a call at the default point; None if it has no time.
        best_secs: Seconds a call at the best point; None if nothing worked.
        best_point: That point.
    """

    name: str
    key: str
    kernel: str
    weight: int
    flops: float
    points: int
    trials: int
    errors: int
    rejected: int
    default_secs: float | None
    best_secs: float | None
    best_point: Mapping[str, int] | None

    @property
    def speed_up(self) -> float | None:
        """Default over best."""
        if self.default_secs is None or self.best_secs is None:
            return None
        return self.default_secs / self.best_secs

    @property
    def gflops(self) -> float | None:
        """GFLOP/s at the best point."""
        return None if self.best_secs is None else self.flops / self.best_secs / 1e9


@dataclass(frozen=True)
class TuneReport:
    """What a run did.

    Attributes:
        model: Name of the network.
        target: The machine that was tuned for.
        origin: What the times are worth.
        machine: The machine that was measured.
        path: The file that holds the records.
        tasks: The kernels in the order of their first call.
        new_trials: Trials of this run.
        elapsed: Seconds that the trials of this run took.
        incidents: What happened besides.
        ended: Why it did not come to its end: `interrupted`, or what the error says; else empty.
    """

    model: str
    target: TargetSpec
    origin: Origin
    machine: Mapping[str, Any]
    path: Path
    tasks: tuple[TaskResult, ...]
    new_trials: int
    elapsed: float
    incidents: Incidents = field(default_factory=Incidents)
    ended: str = ""

    @property
    def trials(self) -> int:
        """Trials that the file holds."""
        return sum(task.trials for task in self.tasks)

    @property
    def errors(self) -> int:
        """Of them, failures."""
        return sum(task.errors for task in self.tasks)

    @property
    def default_secs(self) -> float | None:
        """Kernel time of one inference with every default; None unless all have one."""
        return _sum(self.tasks, [task.default_secs for task in self.tasks])

    @property
    def best_secs(self) -> float | None:
        """Kernel time of one inference with the best of every kernel; None unless all have one."""
        return _sum(self.tasks, [task.best_secs for task in self.tasks])

    @property
    def tuned(self) -> int:
        """Kernels that have a record to build with."""
        return sum(task.best_secs is not None for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "target": self.target.to_json(),
            "origin": self.origin,
            "machine": dict(self.machine),
            "records": str(self.path),
            "trials": self.trials,
            "new_trials": self.new_trials,
            "errors": self.errors,
            "elapsed_seconds": round(self.elapsed, 3),
            "ended": self.ended or None,
            "incidents": self.incidents.to_json(),
            "default_seconds": self.default_secs,
            "best_seconds": self.best_secs,
            "tasks": [
                {**vars(task), "speed_up": task.speed_up, "gflops": task.gflops}
                for task in self.tasks
            ],
        }

    def __str__(self) -> str:
        rows = [
            (
                str(number),
                task.name,
                str(task.weight),
                micro(task.default_secs),
                micro(task.best_secs),
                "-" if task.speed_up is None else f"{task.speed_up:.2f}x",
                speed(task.gflops),
                f"{task.trials}/{task.points}",
                str(task.errors),
            )
            for number, task in enumerate(self.tasks, start=1)
        ]
        header = (
            *("#", "task", "calls", "default us", "best us"),
            *("speed-up", "GFLOP/s", "trials", "errors"),
        )
        return "\n".join([*table(header, rows, left=(1,)), "", *self.summary()])

    def summary(self) -> list[str]:
        """The lines below the table."""
        lines = []
        default, best = self.default_secs, self.best_secs
        if default is not None and best is not None:
            lines.append(
                f"all kernels of one inference: default {default * 1e3:.3f} ms, "
                f"best {best * 1e3:.3f} ms ({default / best:.2f}x)"
            )
        elif best is not None:
            lines.append(f"all kernels of one inference: best {best * 1e3:.3f} ms")
        lines.append(
            f"{self.tuned} of {len(self.tasks)} kernels have a record; {self.trials} trials "
            f"({self.new_trials} new, {self.errors} failed) in `{self.path}`"
        )
        rejected = sum(task.rejected for task in self.tasks)
        if rejected:
            lines.append(f"points that could not be scheduled: {rejected} (see the log)")
        return [*lines, *self.incidents.lines(), describe_origin(self.origin, self.machine)]


def describe_origin(origin: Origin | None, machine: Mapping[str, Any]) -> str:
    """One line: what the times are worth and where they come from."""
    if origin is None:
        return "no board was given"
    if origin == "emulated":  # the board's own model says so too
        return f"{describe_machine(machine)}; {EMULATED_NOTE}"
    if origin == "estimated":
        return (
            f"estimated by {describe_machine(machine)} at "
            f"{machine['clock_mhz'] / 1e3:g} GHz; the model's mean error on published latencies "
            f"of whole networks is {100 * machine['model_error']:.1f} %"
        )
    return f"{origin} on {describe_machine(machine)}"


def _sum(tasks: Sequence[TaskResult], seconds: Sequence[float | None]) -> float | None:
    total = 0.0
    for task, each in zip(tasks, seconds, strict=True):
        if each is None:
            return None
        total += task.weight * each
    return total
