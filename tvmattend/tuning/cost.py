# SPDX-License-Identifier: Apache-2.0
"""MetaSchedule's XGBoost cost model, taught with records and asked to rank schedules."""

import statistics
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

from tvmattend.target import TargetSpec
from tvmattend.tuning.tasks import Task

# Fewer samples than this rank no better than chance.
_WARM_UP_SAMPLES = 12
# How much slower than the slowest success a failure is taken to be.
_FAILURE = 2.0
# Schedules whose features are kept: several pools of every task of a network.
_REMEMBERED = 1024


class Ranker(Protocol):
    """Something that learns from trials which schedules are fast."""

    def learn(self, task: Task, trials: Sequence[tuple[Any, tuple[float, ...]]]) -> None:
        """Take schedules of a task with their times; no times mean a failure."""

    def rank(self, task: Task, schedules: Sequence[Any]) -> list[float] | None:
        """Score schedules, higher for faster; None while too little is known."""


class CostModel:
    """`ms.cost_model.XGBModel` with its per-store features, one model for all tasks.

    Args:
        target: The machine that is tuned for.
        seed: Seed of the trees.
    """

    def __init__(self, target: TargetSpec, seed: int) -> None:
        import xgboost  # noqa: F401  (seconds, which the first batch would wait for)
        from tvm.s_tir.meta_schedule.cost_model import XGBModel
        from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig

        self._target = target.to_tvm()
        # One thread: the sums of a parallel histogram depend on timing, and the plan on the sums.
        config = XGBConfig(seed=seed & 0x7FFFFFFF, nthread=1)
        self._model = XGBModel._cls(config=config, num_warmup_samples=_WARM_UP_SAMPLES)  # noqa: SLF001
        self._model.extractor = _Summaries(self._model.extractor)
        self._contexts: dict[str, Any] = {}
        self._slowest: dict[str, float] = {}

    def learn(self, task: Task, trials: Sequence[tuple[Any, tuple[float, ...]]]) -> None:
        """Add trials; the model trains itself again when a fifth of its data is new."""
        from tvm.s_tir.meta_schedule.runner import RunnerResult

        times = [statistics.median(run_secs) for _, run_secs in trials if run_secs]
        slowest = max([*times, self._slowest.get(task.key, 0.0)])
        self._slowest[task.key] = slowest
        # A failure without a time would weigh nothing in the model, and its kind would be tried
        # again and again.
        lessons = [
            (schedule, run_secs or (_FAILURE * slowest,))
            for schedule, run_secs in trials
            if run_secs or slowest
        ]
        if not lessons:
            return
        candidates = self._candidates(task, [schedule for schedule, _ in lessons])
        results = [RunnerResult(list(run_secs), None) for _, run_secs in lessons]
        self._model.update(self._context(task), candidates, results)

    def rank(self, task: Task, schedules: Sequence[Any]) -> list[float] | None:
        """Score schedules by the predicted share of the task's best speed."""
        if self._model.booster is None or self._model.data_size < _WARM_UP_SAMPLES:
            return None
        if not schedules:
            return []
        scores = self._model.predict(self._context(task), self._candidates(task, schedules))
        return [float(score) for score in scores]

    def _candidates(self, task: Task, schedules: Sequence[Any]) -> list[Any]:
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo
        from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

        info = ArgInfo.from_entry_func(task.mod, remove_preproc=False)
        return [MeasureCandidate(schedule, info) for schedule in schedules]

    def _context(self, task: Task) -> Any:
        if task.key not in self._contexts:
            from tvm.s_tir.meta_schedule import TuneContext

            with _without_intrinsics():
                context = TuneContext(task.mod, target=self._target, num_threads=1)
            self._contexts[task.key] = context
        return self._contexts[task.key]


class _Summaries:
    """A feature extractor that gives one row a schedule, and looks at a schedule once.

    MetaSchedule's own gives a row a store, and its model takes the sum of what it predicts for the
    rows. A step of boosting corrects each row by `eta` times the sum's error, so the sum by as
    many times that as there are rows: with ten rows and more of `eta = 0.2` it goes too far, each
    step further, and our kernels have 13 to 28. Of one row it converges.

    Args:
        extractor: MetaSchedule's own.
    """

    def __init__(self, extractor: Any) -> None:
        self._extractor = extractor
        self._known: OrderedDict[Any, Any] = OrderedDict()

    def extract_from(self, context: Any, candidates: Sequence[Any]) -> list[Any]:
        """Features of each candidate; the model calls this name."""
        new = [item for item in candidates if item.sch not in self._known]
        if new:
            fresh = self._extractor.extract_from(context, new)
            pairs = zip((item.sch for item in new), map(_summary, fresh), strict=True)
            self._known.update(pairs)
        features = [self._known[item.sch] for item in candidates]
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return features


def _summary(stores: Any) -> Any:
    """Features of stores, a tensor [n, m], as their mean and their greatest: [1, 2 m]."""
    import numpy as np
    from tvm.runtime import tensor

    rows = stores.numpy()
    return tensor(np.concatenate([rows.mean(0), rows.max(0)])[None])


@contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keep `TuneContext` from importing all tensor intrinsics: 13 s of parsing, and we use none."""
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
