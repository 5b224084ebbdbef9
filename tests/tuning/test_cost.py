# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
from sample_tasks import matmul, scheduled, task
from tvm import te

from schedules.space import Knob
from tvmattend.target import parse_target
from tvmattend.tuning.cost import CostModel


@pytest.fixture
def lessons():
    """Every schedule of a matmul, and a time that falls with the vector's length."""
    task = matmul()
    candidates = [scheduled(task, point) for point in task.space.points(0)]
    schedules = [candidate.schedule for candidate in candidates]
    seconds = [1e-3 / candidate.point["cols"] for candidate in candidates]
    return task, schedules, seconds


def test_it_knows_nothing_before_it_was_taught(lessons):
    task, schedules, _ = lessons
    assert CostModel(parse_target("host"), 0).rank(task, schedules) is None


def test_it_learns_to_rank_and_the_same_seed_ranks_the_same(lessons):
    task, schedules, seconds = lessons
    scores = []
    for _ in range(2):
        model = CostModel(parse_target("host"), 3)
        for start in range(0, 12, 4):
            trials = [
                (schedule, (second,)) for schedule, second in zip(schedules, seconds, strict=True)
            ]
            model.learn(task, trials[start : start + 4])
        scores.append(model.rank(task, schedules))
    assert scores[0] == scores[1]
    by_score = sorted(range(16), key=lambda index: -scores[0][index])
    fastest = {index for index in range(16) if seconds[index] == min(seconds)}
    assert set(by_score[:4]) == fastest
    assert model.rank(task, []) == []


def chain(length=24):
    """A kernel of many stores: stages one behind the other, each in vectors of the same length."""
    stages = [te.placeholder((64, 64), name="a")]
    for number in range(length):
        stages.append(
            te.compute((64, 64), lambda i, j: stages[-1][i, j] * 2.0 + 1.0, name=f"c{number}")
        )

    def schedule(sch, choose):
        rows, cols = choose("rows"), choose("cols")
        for number in range(length):
            i, j = sch.get_loops(sch.get_sblock(f"c{number}"))
            sch.unroll(sch.split(i, [None, rows])[1])
            sch.vectorize(sch.split(j, [None, cols])[1])

    knobs = (Knob("rows", (1, 2, 4, 8), 2), Knob("cols", (4, 8, 16, 32), 8))
    return task("chain", te.create_prim_func([stages[0], stages[-1]]), schedule, knobs)


def test_it_learns_to_rank_kernels_of_many_stores():
    many = chain()
    candidates = [scheduled(many, point) for point in many.space.points(0)]
    schedules = [candidate.schedule for candidate in candidates]
    columns = [candidate.point["cols"] for candidate in candidates]
    model = CostModel(parse_target("host"), 0)
    lessons = [(sch, (1e-3 / cols,)) for sch, cols in zip(schedules, columns, strict=True)]
    model.learn(many, lessons[:12])
    scores = model.rank(many, schedules)
    assert all(-0.5 < score < 1.5 for score in scores), "shares of the best speed"
    unseen = sorted(zip(scores[12:], columns[12:], strict=True))
    assert [cols for _, cols in unseen] == sorted(columns[12:])


def test_failures_teach_too(lessons):
    task, schedules, seconds = lessons
    model = CostModel(parse_target("host"), 0)
    wide = max(1e-3 / second for second in seconds)
    model.learn(
        task,
        [
            (schedule, () if 1e-3 / second == wide else (second,))
            for schedule, second in zip(schedules, seconds, strict=True)
        ],
    )
    scores = model.rank(task, schedules)
    failed = [score for score, second in zip(scores, seconds, strict=True) if 1e-3 / second == wide]
    assert max(failed) < max(scores), "what fails is not what is proposed first"


def test_the_tensor_intrinsics_stay_away(lessons):
    # Importing them takes 13 s; if something else has, this test can say nothing.
    task, schedules, _ = lessons
    known = "tvm.s_tir.tensor_intrin" in sys.modules
    CostModel(parse_target("host"), 0).learn(task, [(schedules[0], (1e-3,))])
    assert ("tvm.s_tir.tensor_intrin" in sys.modules) == known


def test_features_of_a_schedule_are_extracted_once(lessons, monkeypatch):
    task, schedules, seconds = lessons
    model = CostModel(parse_target("host"), 0)
    asked = []
    extractor = model._model.extractor._extractor

    class Counting:
        def extract_from(self, context, candidates):
            asked.append(len(candidates))
            return extractor.extract_from(context, candidates)

    monkeypatch.setattr(model._model.extractor, "_extractor", Counting())
    model.learn(task, [(schedules[index], (seconds[index],)) for index in range(12)])
    first = model.rank(task, schedules)
    assert model.rank(task, schedules) == first
    assert model.rank(task, schedules[::-1]) == first[::-1]
    assert asked == [12, 4]
