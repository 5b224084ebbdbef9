# SPDX-License-Identifier: Apache-2.0
"""The trials themselves: pick, build, measure, record, until the total is reached."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tvmattend.errors import BoardFullError, TuningError, TvmattendError
from tvmattend.interrupts import kept
from tvmattend.target import TargetSpec
from tvmattend.tuning.bench import Candidate, Outcome
from tvmattend.tuning.cost import Ranker
from tvmattend.tuning.crew import Crew, Finished
from tvmattend.tuning.events import (
    Building,
    Failed,
    Interrupted,
    Observer,
    TrialDone,
    TuneOptions,
)
from tvmattend.tuning.incidents import Incidents
from tvmattend.tuning.patience import BOARD_LOST, BoardAwayError
from tvmattend.tuning.record import Record, one_line
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.records import RecordSet, own_records
from tvmattend.tuning.report import TaskResult, TuneReport, reached
from tvmattend.tuning.search import TaskSearch, next_task
from tvmattend.tuning.tasks import Task

_LOG = logging.getLogger(__name__)

# Kernels built together: enough to keep the builder's processes busy, few enough to learn between.
_BATCH = 8
_BATCH_PER_TASK = 4
# Trials of each kernel before the expected gain decides: the default and one batch.
_WARM = 1 + _BATCH_PER_TASK
# So many failures and no success: something is wrong that more trials will not cure.
_HOPELESS = 16
# So many trials in a row that no connection stood long enough for.
_CUT_OFF = 8


@dataclass
class TuningRun:
    """One run over the tasks of a network.

    Attributes:
        model: Name of the network.
        target: The machine that is tuned for.
        tasks: Its kernels.
        file: Where records go.
        earlier: The records that the file holds.
        found: Records from elsewhere, whose points are tried early.
        options: How much, and how.
        crew: Builds and times.
        ranker: Scores schedules.
        observer: Told of everything.
        incidents: What the crew met, for the report; somebody who hears its events counts.
    """

    model: str
    target: TargetSpec
    tasks: Sequence[Task]
    file: RecordFile
    earlier: Sequence[Record]
    found: RecordSet
    options: TuneOptions
    crew: Crew
    ranker: Ranker
    observer: Observer
    incidents: Incidents = field(default_factory=Incidents)
    searches: list[TaskSearch] = field(init=False)
    before: int = field(init=False)
    new: int = field(init=False, default=0)
    succeeded: int = field(init=False, default=0)
    first_failure: Record | None = field(init=False, default=None)
    cut_off: int = field(init=False, default=0)
    lessons: dict[str, list[tuple[Candidate, Record]]] = field(init=False, default_factory=dict)
    started: float = field(init=False, default_factory=time.monotonic)

    @kept()
    def __post_init__(self) -> None:
        self.searches = [
            TaskSearch(
                task,
                recorded(task, self.earlier),
                [
                    record.point
                    for record in self.found.ranked(
                        task.key, self.target.num_cores, task.space.accepts
                    )
                ],
                self.options.seed,
                self.ranker,
                [
                    record.point
                    for record in self.found.records
                    if record.quarantined and record.key == task.key
                ],
            )
            for task in self.tasks
        ]
        self.before = self.done

    def run(self) -> TuneReport:
        """Do the trials.

        Raises:
            TuningError: The board stayed away, or nothing succeeded.
            NoFreeBoardError: A fleet had no board for too long.
            StorageError: A record or a kernel could not be written, here or on a board.
            KeyboardInterrupt: Ctrl-C, after the observer got `Interrupted`; after an error it got
                `Failed`.
        """
        try:
            self._order()
            while self._under_way:
                self._take(self._next())
                self._order()
            self._check_hope(1 if not any(search.best for search in self.searches) else _HOPELESS)
        except KeyboardInterrupt:
            self.observer(Interrupted(replace(self._report_of_file(), ended="interrupted")))
            raise
        except (TvmattendError, OSError) as error:
            self.observer(Failed(replace(self.report(), ended=str(error))))
            raise
        return self.report()

    @property
    def done(self) -> int:
        """Trials of the network that the file holds."""
        return sum(search.trials for search in self.searches)

    def report(self) -> TuneReport:
        """The state of things now."""
        return self._report([search.records for search in self.searches])

    def _report_of_file(self) -> TuneReport:
        """The state on disk: an interrupt may come between writing a record and counting it."""
        lines = read_records(self.file.path)[0] if self.file.path.is_file() else []
        mine = own_records(lines, self.target, self.crew.origin, self.crew.machine)
        return self._report([recorded(task, mine) for task in self.tasks])

    def _report(self, records: Sequence[Sequence[Record]]) -> TuneReport:
        rows = [
            _result(search, found) for search, found in zip(self.searches, records, strict=True)
        ]
        return TuneReport(
            self.model,
            self.target,
            self.crew.origin,
            self.crew.machine,
            self.file.path,
            tuple(rows),
            sum(row.trials for row in rows) - self.before,
            time.monotonic() - self.started,
            self.incidents,
        )

    @property
    def _under_way(self) -> int:
        return sum(search.planned for search in self.searches) - self.done

    @kept()
    def _order(self) -> None:
        """Give the crew more to do, if it is time: after learning from all that is over.

        What is asked for depends on the records and on what is under way, not on the clock; so
        with one machine the same seed and records give the same trials.
        """
        while self._under_way <= self.crew.ahead:
            self._check_hope(_HOPELESS)
            for search in self.searches:
                search.teach(self.lessons.pop(search.task.key, ()))
            batch = self._pick()
            if not batch:
                return
            order = [task.key for task in self.tasks]
            places = tuple(dict.fromkeys(order.index(candidate.task.key) for candidate in batch))
            self.observer(Building(places, len(batch)))
            self.crew.submit(batch)

    @kept()
    def _next(self) -> Finished:
        try:
            return self.crew.next()
        except BoardAwayError as away:
            reason = one_line(str(away))
            raise (self._full(reason) if away.full else self._gone(reason)) from away

    @kept()
    def _take(self, finished: Finished) -> None:
        record = self._keep(finished.candidate, finished.outcome, finished.wall_secs)
        self.lessons.setdefault(finished.candidate.task.key, []).append((
            finished.candidate,
            record,
        ))
        self.cut_off = self.cut_off + 1 if record.error.startswith(BOARD_LOST) else 0
        fatal = finished.fatal or (record.error if self.cut_off >= _CUT_OFF else "")
        if fatal:
            raise self._gone(fatal)

    def _gone(self, reason: str) -> TuningError:
        return TuningError(
            f"the board stopped answering and did not come back: {reason}",
            f"{reached(self.new, self.done, self.file.path)}; "
            "start the board's server again and repeat the command to go on",
        )

    def _full(self, reason: str) -> BoardFullError:
        return BoardFullError(
            f"no trial can be made: {reason}",
            f"{reached(self.new, self.done, self.file.path)}; free some space on the board, where "
            "its server keeps temporary files, and repeat the command to go on",
        )

    def _pick(self) -> list[Candidate]:
        """The next batch, from one or several tasks."""
        room = self.options.trials - self.done - self._under_way
        cap = self.options.trials_per_task
        batch: list[Candidate] = []
        while len(batch) < min(_BATCH, room):
            search = next_task(self.searches, _WARM, cap)
            if search is None:
                break
            most = min(_BATCH_PER_TASK, min(_BATCH, room) - len(batch), cap - search.planned)
            batch += search.propose(most)
        return batch

    def _keep(self, candidate: Candidate, outcome: Outcome, wall_secs: float) -> Record:
        """Write the record first; everything else can be had again."""
        record = self._record(candidate, outcome, wall_secs)
        self.file.append(record)
        place = next(
            index for index, task in enumerate(self.tasks) if task.key == candidate.task.key
        )
        search = self.searches[place]
        search.learn(candidate, record)
        self.new += 1
        self.succeeded += record.ok
        if not record.ok and self.first_failure is None:
            self.first_failure = record
        if not record.ok:
            _LOG.info(
                "%s of %s at %s:\n%s", record.status, record.task, record.point, outcome.error
            )
        self.observer(TrialDone(record, place, self.done, search.best_secs))
        return record

    def _record(self, candidate: Candidate, outcome: Outcome, wall_secs: float) -> Record:
        import tvm

        task = candidate.task
        conditions = dict(outcome.conditions)
        if outcome.disturbed:
            conditions["disturbed"] = outcome.disturbed
        return Record(
            task=task.name,
            key=task.key,
            kernel=task.space.kernel,
            point=dict(candidate.point),
            status=outcome.status,
            origin=self.crew.origin,
            machine=dict(outcome.machine or self.crew.machine),
            target=self.target.to_json(),
            trace=None if candidate.schedule is None else trace_of(candidate.schedule),
            run_secs=outcome.run_secs,
            error="" if outcome.status == "ok" else one_line(outcome.error),
            tvm=str(tvm.__version__),
            seed=self.options.seed,
            wall_secs=round(wall_secs, 3),
            conditions=conditions,
            sent=outcome.sent,
            quarantined=outcome.quarantined,
        )

    def _check_hope(self, failures: int) -> None:
        if self.succeeded or self.new < failures or self.first_failure is None:
            return
        record = self.first_failure
        raise TuningError(
            f"none of {self.new} trials succeeded; the first, of `{record.task}`: "
            f"{record.status}: {record.error}",
            f"the records are in `{self.file.path}`, the whole text is in the log",
        )


def recorded(task: Task, records: Sequence[Record]) -> list[Record]:
    """The trials of a task whose points its space still has."""
    return [
        record for record in records if record.key == task.key and task.space.accepts(record.point)
    ]


def trace_of(schedule: object) -> object:
    """A schedule's trace as plain JSON data (TVM leaves its own integers and floats in it)."""
    return _plain(schedule.trace.as_json())  # type: ignore[attr-defined]


def _plain(item: object) -> object:
    if item is None or isinstance(item, (bool, int, float)):
        return item
    if isinstance(item, str):
        return str(item)
    if hasattr(item, "value"):  # tirx.IntImm, FloatImm
        return item.value
    if hasattr(item, "items"):
        return {str(key): _plain(value) for key, value in item.items()}
    return [_plain(each) for each in item]  # type: ignore[attr-defined]


def _result(search: TaskSearch, records: Sequence[Record]) -> TaskResult:
    task = search.task
    good = [record for record in records if record.ok]
    best = min(good, key=lambda record: record.seconds, default=None)
    defaults = [record.seconds for record in good if record.point == task.space.default]
    return TaskResult(
        name=task.name,
        key=task.key,
        kernel=task.space.kernel,
        weight=task.weight,
        flops=task.flops,
        points=task.space.size,
        trials=len(records),
        errors=len(records) - len(good),
        rejected=len(search.rejected),
        default_secs=min(defaults, default=None),
        best_secs=None if best is None else best.seconds,
        best_point=None if best is None else dict(best.point),
    )
