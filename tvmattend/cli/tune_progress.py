# SPDX-License-Identifier: Apache-2.0
"""Progress of a tuning run on standard error: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import singledispatchmethod
from pathlib import Path
from typing import Any, TextIO

from tvmattend.text import duration, micro, speed
from tvmattend.tuning.chatter import screen
from tvmattend.tuning.events import (
    BoardBack,
    BoardGone,
    BoardHot,
    BoardJoined,
    BoardLeft,
    Building,
    Event,
    Failed,
    Interrupted,
    Note,
    Planned,
    Repeated,
    Stage,
    TrialDone,
)
from tvmattend.tuning.report import TunePlan, TuneReport, reached

_NAME_WIDTH = 28


class Progress:
    """Plain lines, one an event; the observer of a run.

    Args:
        stream: Where they go.
        log: Where TVM's messages go, for the user to know.

    Attributes:
        interrupted: Whether Ctrl-C ended the run.
        report: What a run reached that did not come to its end; None before its first trial.
    """

    def __init__(self, stream: TextIO, log: Path) -> None:
        self._log = log
        self.interrupted = False
        self._stream = stream
        self._begun = time.monotonic()
        self._plan: TunePlan | None = None
        self._trials_begun = self._begun
        self._first: tuple[float, int] | None = None  # when the first trial was over, and its place
        self.report: TuneReport | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End whatever is alive on the screen."""

    def stop(self) -> TuneReport | None:
        """Ctrl-C: say what is recorded and how to go on.

        Returns:
            What was reached; None if no trial was begun.
        """
        self.close()
        self.interrupted = True
        if self.report is None:
            self.say("interrupted before the first trial; nothing was written")
            return None
        where = reached(self.report.new_trials, self.report.trials, self.report.path)
        self.say(f"interrupted: {where}; repeat the command to go on")
        return self.report

    @singledispatchmethod
    def __call__(self, event: Event) -> None:
        """Show an event."""
        raise TypeError(type(event).__name__)  # a slip of ours: an event without a line

    @__call__.register
    def _(self, event: Stage) -> None:
        self.say(f"[{time.monotonic() - self._begun:5.1f} s] {event.text}")

    @__call__.register
    def _(self, event: Note) -> None:
        self.say(f"note: {event.text}")

    @__call__.register
    def _(self, event: Planned) -> None:
        plan = self._plan = event.plan
        self._trials_begun = time.monotonic()
        for note in plan.notes:
            self.say(f"note: {note}")
        self.say(
            f"{len(plan.tasks)} tasks, {plan.trials} trials to run, {plan.done} recorded, about "
            f"{duration(plan.seconds)}; times will be {plan.origin}"
        )
        self.say(f"records go to `{plan.path}`, TVM's messages to `{self._log}`")
        self.begin(plan)

    @__call__.register
    def _(self, event: Building) -> None:
        self.building(event)

    @__call__.register
    def _(self, event: TrialDone) -> None:
        self.trial(event)

    @__call__.register
    def _(self, event: BoardGone) -> None:
        self.say(
            f"{event.board} does not answer ({event.reason}); "
            f"attempt {event.attempt} of {event.attempts} in {round(event.wait, 1):g} s"
        )

    @__call__.register
    def _(self, event: BoardBack) -> None:
        self.say(f"{event.board} answers again")

    @__call__.register
    def _(self, event: Repeated) -> None:
        self.say(
            f"{event.board}: the connection broke ({event.reason}); "
            f"the trial is repeated in {event.wait:g} s"
        )

    @__call__.register
    def _(self, event: BoardHot) -> None:
        when = f"in {event.wait:g} s, rested" if event.wait else "now"
        self.say(f"{event.board}: {event.reason}; the trial is repeated {when}")

    @__call__.register
    def _(self, event: BoardJoined) -> None:
        self.say(f"{event.board} joined: {event.machine}")
        if event.difference:
            self.say(f"note: {event.board} differs from the first board: {event.difference}")

    @__call__.register
    def _(self, event: BoardLeft) -> None:
        self.say(f"{event.board} left: {event.reason}")

    @__call__.register
    def _(self, event: Interrupted) -> None:
        self.report = event.report

    @__call__.register
    def _(self, event: Failed) -> None:
        self.report = event.report

    def begin(self, plan: TunePlan) -> None:
        """The trials begin."""

    def building(self, event: Building) -> None:
        """A batch is being built: no line of its own."""

    def trial(self, event: TrialDone) -> None:
        """A trial is over."""
        assert self._plan is not None  # noqa: S101  (`Planned` comes first)
        record, total = event.record, self._plan.done + self._plan.trials
        result = f"{micro(record.seconds)} us" if record.ok else f"{record.status}: {record.error}"
        spent = time.monotonic() - self._trials_begun
        left = self._each(event.done) * max(0, total - event.done)
        self.say(
            f"[{event.done}/{total}] task {event.task + 1}/{len(self._plan.tasks)} "
            f"{record.task}: {result}; {self.best(event)}; "
            f"{duration(spent)}, {duration(left)} left"
        )

    def _each(self, done: int) -> float:
        """Seconds a trial, since the first was over: what came before it is not repeated."""
        assert self._plan is not None  # noqa: S101
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        since, first = self._first
        if done == first:
            return self._plan.seconds / max(1, self._plan.trials)
        return (now - since) / (done - first)

    def best(self, event: TrialDone) -> str:
        """The best of a task so far."""
        assert self._plan is not None  # noqa: S101
        seconds = event.best_secs
        if seconds == float("inf"):
            return "no success yet"
        gflops = self._plan.tasks[event.task].flops / seconds / 1e9
        return f"best {micro(seconds)} us, {speed(gflops)} GFLOP/s"


class LiveProgress(Progress):
    """One bar that stays at the bottom; lines scroll above it."""

    def __init__(self, stream: TextIO, log: Path) -> None:
        super().__init__(stream, log)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._console = Console(file=stream, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            # Python's streams go to the log while TVM works; the bar must not take them back.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._row: Any = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar where it is and give the terminal back."""
        self._bar.stop()

    def begin(self, plan: TunePlan) -> None:
        """Show the bar."""
        self._row = self._bar.add_task(
            "building", total=plan.done + plan.trials, completed=plan.done
        )
        self._bar.start()

    def building(self, event: Building) -> None:
        """Name what is being built."""
        if self._plan is not None and self._row is not None:
            names = {self._plan.tasks[place].name for place in event.tasks}
            what = names.pop() if len(names) == 1 else f"{len(names)} tasks"
            self._bar.update(self._row, description=f"building {event.count} of {what}")

    def trial(self, event: TrialDone) -> None:
        """Move the bar; failures get a line."""
        assert self._plan is not None  # noqa: S101
        record = event.record
        if not record.ok:
            self.say(f"{record.task}: {record.status}: {record.error}")
        name = record.task
        if len(name) > _NAME_WIDTH:
            name = name[: _NAME_WIDTH - 3] + "..."
        text = f"task {event.task + 1}/{len(self._plan.tasks)} {name}: {self.best(event)}"
        self._bar.update(self._row, completed=event.done, description=text)


@contextmanager
def showing(log: Path) -> Iterator[Progress]:
    """The progress that suits standard error, which stays on it while TVM's messages do not."""
    with screen() as stream:
        progress = LiveProgress(stream, log) if stream.isatty() else Progress(stream, log)
        try:
            yield progress
        finally:
            progress.close()
