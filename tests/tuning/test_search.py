# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from sample_records import RECORD
from sample_tasks import FakeRanker, add_one, matmul, seconds_of, unschedulable

from tvmattend.tuning.search import BOARD_LOST, TaskSearch, next_task


def record(task, point, seconds=None, error=""):
    status = "run-error" if error else "ok"
    run_secs = () if error else (seconds or seconds_of(task, point),)
    return replace(RECORD, key=task.key, point=point, run_secs=run_secs, status=status, error=error)


def search(task, records=(), starts=(), seed=0, ranker=None):
    return TaskSearch(task, records, starts, seed, ranker or FakeRanker())


def walk(found, count=4, limit=100):
    """Propose and learn until nothing comes; the points in order."""
    points = []
    while len(points) < limit and (batch := found.propose(count)):
        for candidate in batch:
            points.append(candidate.point)
            found.learn(candidate, record(found.task, candidate.point))
    return points


def test_the_default_is_first_and_alone_then_every_point_once():
    task = matmul()
    found = search(task)
    (first,) = found.propose(4)
    assert first.point == task.space.default
    assert first.schedule is not None
    found.learn(first, record(task, first.point))
    rest = walk(found)
    keys = {tuple(sorted(point.items())) for point in [first.point, *rest]}
    assert len(rest) == 15
    assert len(keys) == task.space.size == 16
    assert found.exhausted
    assert found.propose(4) == []
    assert found.trials == 16


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    plans = [walk(search(matmul(), seed=seed)) for seed in (5, 5, 6)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_a_run_goes_on_where_its_records_end():
    task = matmul()
    first = walk(search(task), limit=6)
    found = search(task, [record(task, point) for point in first])
    assert found.trials == len(first)
    assert found.best_secs == min(seconds_of(task, point) for point in first)
    rest = walk(found)
    assert len(rest) == 16 - len(first)
    assert not [point for point in rest if point in first]


def test_points_that_other_machines_like_come_right_after_the_default():
    task = matmul()
    starts = [{"rows": 8, "cols": 32}, task.space.default, {"rows": 1, "cols": 4}]
    points = walk(search(task, starts=starts), limit=4)
    assert points[:3] == [task.space.default, starts[0], starts[2]]
    tried = [record(task, task.space.default), record(task, starts[0])]
    assert walk(search(task, tried, starts), limit=1)[0] == starts[2]


def test_what_the_model_likes_comes_first_but_not_always():
    def score(schedule):
        return float(str(schedule.mod).count("T.vectorized(32)"))

    firsts = []
    for seed in range(20):
        task = matmul()
        found = search(
            task, [record(task, task.space.default)], seed=seed, ranker=FakeRanker(score)
        )
        firsts.append(found.propose(1)[0].point["cols"])
    assert 12 <= firsts.count(32) < 20, "greedy for the most part, and some exploration"


def test_neighbours_of_the_best_are_in_the_pool():
    task = matmul()
    best = {"rows": 8, "cols": 16}
    found = search(task, [record(task, task.space.default, 9e-3), record(task, best, 1e-3)])
    first = found.propose(2)[0].point
    assert sum(first[knob] != best[knob] for knob in best) == 1


def test_the_model_is_taught_failures_but_not_lost_boards():
    task, ranker = matmul(), FakeRanker()
    found = search(task, ranker=ranker)
    (candidate,) = found.propose(1)
    ok, failed = record(task, candidate.point, 1e-3), record(task, candidate.point, error="boom")
    gone = record(task, candidate.point, error=f"{BOARD_LOST}: connection refused")
    found.teach([(candidate, ok), (candidate, failed), (candidate, gone)])
    assert ranker.lessons == [("matmul", (1e-3,)), ("matmul", ())]
    again = FakeRanker()
    search(task, [ok, failed], ranker=again)
    assert again.lessons == ranker.lessons


def test_a_lost_board_earns_a_point_one_more_trial_and_only_one():
    task = matmul()
    gone = record(task, task.space.default, error=f"{BOARD_LOST}: connection refused")
    found = search(task, [gone])
    assert found.propose(1)[0].point == task.space.default
    twice = search(task, [gone, gone])
    assert twice.propose(1)[0].point != task.space.default
    failed = search(task, [record(task, task.space.default, error="it crashed")])
    assert failed.propose(1)[0].point != task.space.default


def test_points_that_cannot_be_scheduled_cost_no_trial_but_the_default_does():
    one = search(unschedulable(bad=(1,)))
    walk(one)
    assert one.trials == 1
    assert one.exhausted
    assert ["no such block" in text for text in one.rejected.values()] == [True]
    none = search(unschedulable())
    (default,) = none.propose(4)
    assert default.schedule is None
    assert "no such block" in default.error


def test_every_task_gets_its_turn_before_the_gain_decides():
    light, heavy = search(add_one()), search(matmul(weight=9))
    assert next_task([light, heavy], warm=3, cap=99) is heavy, "the heaviest first"
    (default,) = heavy.propose(1)
    assert next_task([light, heavy], warm=3, cap=99) is light, "what is under way counts"
    heavy.learn(default, record(heavy.task, default.point))
    walk(light)
    assert light.exhausted
    assert next_task([light, heavy], warm=3, cap=99) is heavy
    assert next_task([light, heavy], warm=3, cap=1) is None, "at the cap, or exhausted"


def test_the_gain_is_the_time_a_task_still_takes_and_fades_without_success():
    slow, fast = matmul(weight=10, name="slow"), matmul(32, weight=1, name="fast")
    both = [
        search(task, [record(task, point, 1e-3) for point in _points(task, 3)])
        for task in (slow, fast)
    ]
    assert next_task(both, warm=3, cap=99) is both[0]
    stuck = search(
        slow,
        [record(slow, slow.space.default, 1e-3)]
        + [record(slow, point, 2e-3) for point in _points(slow, 15)[1:]],
    )
    fresh = search(replace(fast, weight=4), [record(fast, p, 1e-3) for p in _points(fast, 3)])
    assert stuck.stale == 14
    assert next_task([stuck, fresh], warm=3, cap=99) is fresh


def test_a_task_of_which_nothing_works_comes_last():
    task, other = matmul(weight=100), matmul(32, name="other")
    broken = search(task, [record(task, point, error="boom") for point in _points(task, 4)])
    sound = search(other, [record(other, point, 1e-6) for point in _points(other, 4)])
    assert next_task([broken, sound], warm=3, cap=99) is sound
    assert next_task([broken], warm=3, cap=99) is broken


def _points(task, count):
    points = task.space.points(0)
    return [next(points) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_no_point_is_proposed_twice_while_it_is_under_way(count):
    found = search(matmul())
    proposed = [candidate for _ in range(30) for candidate in found.propose(count)]
    assert len(proposed) == 16
    assert len({tuple(item.point.items()) for item in proposed}) == 16
    assert found.trials == 0
    assert found.planned == 16
