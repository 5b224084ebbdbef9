# SPDX-License-Identifier: Apache-2.0
"""Which point of a task to try next: default, known good points, then what the model likes.

Epsilon-greedy: most slots of a batch go to the highest-ranked of a pool, some to the next of the
seeded order, whatever the model thinks. The pool mixes that order with the neighbours (one knob
changed) of the best points so far. Every draw is seeded by the run's seed, the task and the
number of its trials, so the same trials are always followed by the same proposal.
"""

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import Any

from tvmattend.tuning.bench import Candidate
from tvmattend.tuning.cost import Ranker
from tvmattend.tuning.patience import BOARD_LOST
from tvmattend.tuning.record import Record
from tvmattend.tuning.tasks import Task

_LOG = logging.getLogger(__name__)

_EPSILON = 0.15
_POOL = 24
_NEW = 4  # schedules added to the pool, and as many neighbours, for one batch
_PARENTS = 2  # best points whose neighbours join the pool
_STARTS = 3  # points tried because records of another machine or origin liked them

_Key = tuple[tuple[str, int], ...]


class TaskSearch:
    """The state of one task: what was tried, what is best, what comes next.

    Args:
        task: The kernel.
        records: Its earlier trials in the file that this run goes on with.
        starts: Points to try early, best first, from records whose times are not comparable.
        seed: The run's seed.
        ranker: Scores schedules; shared by all tasks.
        banned: Points in quarantine, by records from anywhere.
    """

    def __init__(
        self,
        task: Task,
        records: Sequence[Record],
        starts: Sequence[Mapping[str, int]],
        seed: int,
        ranker: Ranker,
        banned: Sequence[Mapping[str, int]] = (),
    ) -> None:
        self.task = task
        self.records: list[Record] = []
        self.best: Record | None = None
        self.rejected: dict[_Key, str] = {}
        self.stale = 0  # trials since the best one
        self._seed = seed
        self._ranker = ranker
        self._by_point: dict[_Key, list[Record]] = {}
        self._pending: set[_Key] = set()
        self._banned = {_key(point) for point in banned}
        self._order: Iterator[dict[str, int]] = task.space.points(seed)
        self._pool: dict[_Key, Candidate] = {}  # of the seeded order
        self._near: dict[_Key, Candidate] = {}  # neighbours of the best
        self._replay(records)
        fresh = [dict(point) for point in starts if not self._settled(_key(point))]
        self._starts = fresh[:_STARTS]

    @property
    def trials(self) -> int:
        """Trials done."""
        return len(self.records)

    @property
    def planned(self) -> int:
        """Trials done and under way."""
        return self.trials + len(self._pending)

    @property
    def best_secs(self) -> float:
        """Seconds a call at the best point; infinity before the first success."""
        return self.best.seconds if self.best is not None else math.inf

    @property
    def exhausted(self) -> bool:
        """Whether no point is left that was not tried (or rejected)."""
        if not self._settled(_key(self.task.space.default)):
            return False
        self._fill_pool(1)
        return not self._pool

    def propose(self, count: int) -> list[Candidate]:
        """Give up to `count` points that were not tried; fewer when the space runs out."""
        draw = random.Random(f"{self._seed}/{self.task.key}/{self.trials}")  # noqa: S311
        chosen: list[Candidate] = []
        for point in [self.task.space.default, *self._starts]:
            if len(chosen) < count and not self._settled(_key(point)):
                chosen.append(self._take(point))
        # The first visit measures the default alone; the model has nothing to say yet.
        if self.trials or not chosen:
            chosen += self._from_pool(count - len(chosen), draw)
        return chosen

    def learn(self, candidate: Candidate, record: Record) -> None:
        """Take the result of a proposal (the model is taught batch-wise, by `teach`)."""
        key = _key(candidate.point)
        self._pending.discard(key)
        self._note(record)

    def teach(self, trials: Sequence[tuple[Candidate, Record]]) -> None:
        """Teach the model a batch of this task's results."""
        self._ranker.learn(
            self.task,
            [
                (candidate.schedule, record.run_secs)
                for candidate, record in trials
                if candidate.schedule is not None and not _lost(record)
            ],
        )

    def _replay(self, records: Sequence[Record]) -> None:
        lessons = []
        for record in records:
            self._note(record)
            candidate = scheduled(self.task, record.point)
            lessons.append((candidate, record))
        self.teach(lessons)

    def _note(self, record: Record) -> None:
        self.records.append(record)
        self._by_point.setdefault(_key(record.point), []).append(record)
        self.stale += 1
        if record.seconds < self.best_secs:
            self.best = record
            self.stale = 0

    def _settled(self, key: _Key) -> bool:
        """Whether a point needs no trial: a lost board earns it one more, and only one."""
        if key in self._pending or key in self.rejected or key in self._banned:
            return True
        return _enough(self._by_point.get(key, ()))

    def _take(self, point: Mapping[str, int]) -> Candidate:
        key = _key(point)
        self._pending.add(key)
        known = self._pool.pop(key, None) or self._near.pop(key, None)
        return known or scheduled(self.task, point)

    def _from_pool(self, count: int, draw: random.Random) -> list[Candidate]:
        if count < 1:
            return []
        informed = self._ranker.rank(self.task, []) is not None
        # A schedule and its features cost about as much as a tenth of a trial: where the model
        # cannot rank yet there is no use in a choice, and the pool grows by a few a batch.
        self._fill_pool(min(_POOL, len(self._pool) + _NEW) if informed else count)
        self._visit_neighbours(_NEW if informed else count // 2, draw)
        both = {**self._near, **self._pool}
        keys = list(both)
        scores = self._ranker.rank(self.task, [both[key].schedule for key in keys])
        if scores is not None:
            rank = dict(zip(keys, scores, strict=True))
            keys.sort(key=lambda key: -rank[key])
        chosen: list[Candidate] = []
        while keys and len(chosen) < count:
            explore = draw.random() < _EPSILON and self._pool
            key = next(iter(self._pool)) if explore else keys[0]
            keys.remove(key)
            chosen.append(self._take(dict(key)))
        return chosen

    def _fill_pool(self, size: int) -> None:
        self._pool = {key: item for key, item in self._pool.items() if not self._settled(key)}
        while len(self._pool) < size:
            following = next(self._order, None)
            if following is None:
                return
            self._pool.update(self._admit(following))

    def _visit_neighbours(self, new: int, draw: random.Random) -> None:
        """Keep those neighbours of the best that were scheduled before, and add a few."""
        points = {_key(point): point for point in self._neighbours()}
        known = {**self._near, **self._pool}
        self._near = {key: known[key] for key in points if key in known and not self._settled(key)}
        fresh = [key for key in points if key not in known and not self._settled(key)]
        for key in draw.sample(fresh, min(new, len(fresh))):
            self._near.update(self._admit(points[key]))

    def _admit(self, point: Mapping[str, int]) -> dict[_Key, Candidate]:
        """The point and its schedule, unless it was tried or cannot be scheduled."""
        key = _key(point)
        if self._settled(key):
            return {}
        candidate = self._near.get(key) or self._pool.get(key) or scheduled(self.task, point)
        if candidate.schedule is None:
            self.rejected[key] = candidate.error
            _LOG.info("%s cannot be scheduled at %s: %s", self.task.name, point, candidate.error)
            return {}
        return {key: candidate}

    def _neighbours(self) -> Iterator[dict[str, int]]:
        good = sorted(
            (record for record in self.records if record.ok), key=lambda record: record.seconds
        )
        for parent in good[:_PARENTS]:
            for knob in self.task.space.knobs:
                for choice in knob.choices:
                    if choice != parent.point[knob.name]:
                        yield {**parent.point, knob.name: choice}


def scheduled(task: Task, point: Mapping[str, int]) -> Candidate:
    """A point of a task, scheduled; the candidate says why if it cannot be."""
    import tvm

    _trust_hints()
    schedule: Any = tvm.s_tir.Schedule(task.mod)
    try:
        task.space.apply(schedule, point)
    except (RuntimeError, ValueError) as error:  # TVM's ScheduleError is a RuntimeError
        return Candidate(task, dict(point), None, f"{type(error).__name__}: {error}")
    return Candidate(task, dict(point), schedule)


@cache
def _trust_hints() -> None:
    """Have TVM's schedules not check the arguments of every call against type hints, here.

    That is a quarter of the time it takes to apply a point; `tvmattend build` makes the same calls
    with the check.
    """
    from tvm.s_tir import Schedule

    for name, method in list(vars(Schedule).items()):
        if isinstance(method, FunctionType) and hasattr(method, "__wrapped__"):
            setattr(Schedule, name, method.__wrapped__)


def _key(point: Mapping[str, int]) -> _Key:
    return tuple(sorted(point.items()))


def open_points(task: Task, records: Sequence[Record]) -> int:
    """How many points of a task its own trials leave to be tried."""
    by_point: dict[_Key, list[Record]] = {}
    for record in records:
        by_point.setdefault(_key(record.point), []).append(record)
    return task.space.size - sum(_enough(found) for found in by_point.values())


def _enough(records: Sequence[Record]) -> bool:
    """Whether a point with these records needs no more."""
    return any(not _lost(record) for record in records) or len(records) > 1


def _lost(record: Record) -> bool:
    return not record.ok and record.error.startswith(BOARD_LOST)


def next_task(searches: Sequence[TaskSearch], warm: int, cap: int) -> TaskSearch | None:
    """Choose the task that deserves the next trials.

    Each task gets its default first and `warm` trials next, in turn; after that the share of the
    network's time that a task still takes decides, and less so the longer it did not improve.

    Args:
        searches: All tasks.
        warm: Trials that every task gets before any gets more.
        cap: Most trials of a task.

    Returns:
        The task, or None when all are at the cap or exhausted.
    """
    open_ = [item for item in searches if item.planned < cap and not item.exhausted]
    if not open_:
        return None
    least = min(item.planned for item in open_)
    if least < warm:
        # The heaviest first: there may be fewer trials than tasks.
        return max(
            (item for item in open_ if item.planned == least),
            key=lambda item: item.task.weight * item.task.flops,
        )

    def gain(item: TaskSearch) -> float:
        if item.best is None:
            return 0.0  # nothing of it works: last of all
        # What is under way counts as stale, so a batch spreads over tasks.
        stale = item.stale + item.planned - item.trials
        return item.task.weight * item.best.seconds / (1 + stale / warm)

    return max(open_, key=gain)
