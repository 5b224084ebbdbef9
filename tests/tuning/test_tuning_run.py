# SPDX-License-Identifier: Apache-2.0
import math
import signal
from contextlib import suppress
from dataclasses import replace

import pytest
from sample_tasks import (
    FakeMeasurer,
    FakeRanker,
    add_one,
    lost,
    matmul,
    seconds_of,
    unschedulable,
)

from tvmattend.errors import StorageError, TuningError
from tvmattend.target import parse_target
from tvmattend.tuning.bench import Outcome
from tvmattend.tuning.crew import Alone
from tvmattend.tuning.events import (
    BoardBack,
    BoardGone,
    Building,
    Interrupted,
    TrialDone,
    TuneOptions,
)
from tvmattend.tuning.patience import Patience
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.records import RecordSet
from tvmattend.tuning.run import TuningRun

HOST = parse_target("host", 2)
FAILED = Outcome("run-error", error="Traceback ...\nRuntimeError: it exploded\n")


class Bench:
    """A run over fakes, with everything it does written down."""

    def __init__(self, path, tasks, measurer=None, found=None, **options):
        self.file = RecordFile(path)
        self.measurer = measurer or FakeMeasurer()
        self.ranker = FakeRanker()
        self.events = []
        self.slept = []
        earlier = read_records(path)[0] if path.exists() else []
        patience = Patience(self.events.append, sleep=self.slept.append)
        self.run = TuningRun(
            model="net",
            target=HOST,
            tasks=tasks,
            file=self.file,
            earlier=earlier,
            found=found or RecordSet(),
            options=TuneOptions(**options),
            crew=Alone(self.measurer, patience),
            ranker=self.ranker,
            observer=self.events.append,
        )

    def records(self):
        records, faults = read_records(self.file.path)
        assert not faults
        return records

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def plan(bench):
    return bench.measurer.ran


def test_the_total_is_of_the_network_and_counts_what_is_recorded(tmp_path):
    path, tasks = tmp_path / "r.jsonl", [matmul(), matmul(32, name="small")]
    first = Bench(path, tasks, trials=10)
    report = first.run.run()
    assert (report.new_trials, report.trials, len(first.records())) == (10, 10, 10)
    second = Bench(path, tasks, trials=17)
    report = second.run.run()
    assert (report.new_trials, report.trials, len(second.records())) == (7, 17, 17)
    assert not set(plan(first)) & set(plan(second)), "no point twice"
    third = Bench(path, tasks, trials=17)
    assert third.run.run().new_trials == 0
    assert plan(third) == []
    assert [event.done for event in second.of(TrialDone)] == list(range(11, 18))


def test_the_cap_of_a_task_counts_what_is_recorded(tmp_path):
    path, tasks = tmp_path / "r.jsonl", [matmul(), matmul(32, name="small")]
    Bench(path, tasks, trials_per_task=3).run.run()
    report = Bench(path, tasks, trials_per_task=6).run.run()
    assert [task.trials for task in report.tasks] == [6, 6]
    assert report.new_trials == 6


def test_a_run_ends_when_every_space_is_exhausted(tmp_path):
    report = Bench(tmp_path / "r.jsonl", [matmul(), add_one()], trials=1000).run.run()
    assert [(task.trials, task.points) for task in report.tasks] == [(16, 16), (2, 2)]


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(tmp_path):
    plans = []
    for number, seed in enumerate((1, 1, 2)):
        bench = Bench(
            tmp_path / f"{number}.jsonl",
            [matmul(), matmul(32, name="small"), add_one()],
            trials=20,
            seed=seed,
        )
        bench.run.run()
        plans.append(plan(bench))
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert len(plans[0]) == 20


def test_defaults_come_first_and_the_best_is_found(tmp_path):
    tasks = [matmul(), matmul(32, name="small", weight=3)]
    bench = Bench(tmp_path / "r.jsonl", tasks, trials=32)
    report = bench.run.run()
    defaults = [(task.name, tuple(sorted(task.space.default.items()))) for task in tasks]
    assert sorted(plan(bench)[:2]) == sorted(defaults)
    for task, row in zip(tasks, report.tasks, strict=True):
        assert row.best_secs == min(seconds_of(task, point) for point in task.space.points(0))
        assert row.default_secs == seconds_of(task, task.space.default)
        assert row.best_point is not None
        assert seconds_of(task, row.best_point) == row.best_secs
    assert report.best_secs == pytest.approx(
        sum(row.weight * row.best_secs for row in report.tasks)
    )
    assert report.default_secs > report.best_secs


def test_a_record_says_everything(tmp_path):
    bench = Bench(tmp_path / "r.jsonl", [matmul()], trials=1, seed=7)
    bench.run.run()
    (record,) = bench.records()
    task = bench.run.tasks[0]
    assert (record.task, record.key, record.kernel) == ("matmul", task.key, "matmul")
    assert record.point == task.space.default
    assert (record.origin, record.machine, record.threads) == ("measured", {"core": "fake"}, 2)
    assert (record.seed, record.tvm[:4], record.is_for(HOST)) == (7, "0.27", True)
    import tvm

    again, applied = tvm.s_tir.Schedule(task.mod), tvm.s_tir.Schedule(task.mod)
    tvm.s_tir.schedule.Trace.apply_json_to_schedule(record.trace, again)
    task.space.apply(applied, record.point)
    tvm.ir.assert_structural_equal(again.mod, applied.mod)


def test_failures_are_records_and_the_run_goes_on(tmp_path):
    outcomes = iter([FAILED, Outcome("timeout", error="measuring took more than 1 s")])

    def answer(task, point):
        return next(outcomes, Outcome("ok", (1e-3,)))

    bench = Bench(tmp_path / "r.jsonl", [matmul(), unschedulable()], FakeMeasurer(answer), trials=8)
    report = bench.run.run()
    statuses = [record.status for record in bench.records()]
    assert statuses.count("ok") == 5
    errors = {record.status: record.error for record in bench.records() if not record.ok}
    assert errors["run-error"] == "RuntimeError: it exploded"
    assert errors["timeout"] == "measuring took more than 1 s"
    assert "no such block" in errors["build-error"]
    assert [task.errors for task in report.tasks] == [2, 1]
    assert report.tasks[0].default_secs is None, "its default had no time"
    assert report.default_secs is None
    assert report.tuned == 1
    assert bench.measurer.discarded == len(plan(bench)) == 7


def test_nothing_but_failures_is_an_error_with_the_first_ones_text(tmp_path):
    path = tmp_path / "r.jsonl"
    bench = Bench(path, [add_one()], FakeMeasurer(lambda *_: FAILED), trials=2)
    with pytest.raises(TuningError, match=r"none of 2 trials succeeded.*`add_one`.*it exploded"):
        bench.run.run()
    assert len(bench.records()) == 2


def test_a_hopeless_run_ends_early(tmp_path):
    tasks = [matmul(size, name=f"m{size}") for size in (32, 64, 96)]
    bench = Bench(tmp_path / "r.jsonl", tasks, FakeMeasurer(lambda *_: FAILED), trials=48)
    with pytest.raises(TuningError, match="none of 16 trials succeeded") as caught:
        bench.run.run()
    assert "log" in caught.value.hint


def test_a_few_failures_at_the_end_of_a_good_run_are_no_error(tmp_path):
    path, tasks = tmp_path / "r.jsonl", [matmul()]
    Bench(path, tasks, trials=14).run.run()
    report = Bench(path, tasks, FakeMeasurer(lambda *_: FAILED), trials=16).run.run()
    assert (report.new_trials, report.errors, report.tuned) == (2, 2, 1)


def _losing(times, during_kernel=False, sent=True):
    """Loses the board that often at the third run."""
    left, calls = [times], [0]

    def answer(task, point):
        calls[0] += 1
        if calls[0] >= 3 and left[0]:
            left[0] -= 1
            raise lost(during_kernel=during_kernel, sent=sent)
        return Outcome("ok", (seconds_of(task, point),))

    return answer


def test_a_board_that_comes_back_costs_nothing(tmp_path):
    measurer = FakeMeasurer(_losing(1), back=[False, False, True])
    bench = Bench(tmp_path / "r.jsonl", [matmul()], measurer, trials=6)
    report = bench.run.run()
    assert report.errors == 0
    assert report.trials == 6
    assert bench.slept[:3] == [1.0, 2.0, 4.0]
    assert [event.attempt for event in bench.of(BoardGone)] == [1, 2, 3]
    assert len(bench.of(BoardBack)) == 1
    assert plan(bench)[2] == plan(bench)[3], "the same point again"


def test_a_kernel_that_takes_the_board_along_is_recorded_before_the_board_is_waited_for(tmp_path):
    measurer = FakeMeasurer(_losing(1, during_kernel=True), back=[False, True])
    bench = Bench(tmp_path / "r.jsonl", [matmul()], measurer, trials=6)
    report = bench.run.run()
    assert (report.trials, report.errors) == (6, 1)
    failed = next(record for record in bench.records() if not record.ok)
    assert (failed.status, failed.quarantined) == ("run-error", True)
    assert failed.error == "the board went away while it ran: connection refused"
    kinds = [
        (type(event), event.record.quarantined if isinstance(event, TrialDone) else None)
        for event in bench.events
        if isinstance(event, (TrialDone, BoardGone, BoardBack))
    ]
    told = kinds.index((TrialDone, True))
    assert [kind for kind, _ in kinds[told + 1 : told + 4]] == [BoardGone, BoardGone, BoardBack]


def test_a_board_that_a_kernel_took_for_good_ends_the_run(tmp_path):
    measurer = FakeMeasurer(_losing(1, during_kernel=True), back=[False] * 9)
    bench = Bench(tmp_path / "r.jsonl", [matmul()], measurer, trials=6)
    with pytest.raises(TuningError, match=r"did not come back: .*connection refused"):
        bench.run.run()
    assert [record.quarantined for record in bench.records()] == [False, False, True]


def test_a_board_that_stays_away_ends_the_run_and_says_how_to_go_on(tmp_path):
    path, tasks = tmp_path / "r.jsonl", [matmul()]
    bench = Bench(path, tasks, FakeMeasurer(_losing(9), back=[False] * 9), trials=6)
    with pytest.raises(TuningError, match=r"stopped answering.*connection refused") as caught:
        bench.run.run()
    assert bench.slept == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0], abs=0.5)
    assert "3 trials of this run (3 in all) are in" in caught.value.hint
    assert str(path) in caught.value.hint
    gone = bench.records()[-1]
    assert gone.error == "board lost: connection refused"
    again = Bench(path, tasks, trials=16)
    again.run.run()
    assert tuple(sorted(gone.point.items())) in [point for _, point in plan(again)]


def test_a_board_that_is_gone_before_the_first_trial_names_no_file(tmp_path):
    path = tmp_path / "r.jsonl"

    def answer(task, point):
        raise lost(during_kernel=False, sent=False)

    bench = Bench(path, [matmul()], FakeMeasurer(answer, back=[False] * 9), trials=6)
    with pytest.raises(TuningError, match=r"stopped answering") as caught:
        bench.run.run()
    assert caught.value.hint.startswith("no trial is recorded; start the board's server again")
    assert not path.exists()


def test_a_board_that_is_gone_before_a_kernel_is_sent_costs_no_trial(tmp_path):
    path, tasks = tmp_path / "r.jsonl", [matmul()]
    bench = Bench(path, tasks, FakeMeasurer(_losing(9, sent=False), back=[False] * 9), trials=6)
    with pytest.raises(TuningError, match=r"stopped answering.*connection refused") as caught:
        bench.run.run()
    assert "2 trials of this run (2 in all) are in" in caught.value.hint
    assert [record.ok for record in bench.records()] == [True, True]
    assert bench.measurer.discarded == 3
    report = Bench(path, tasks, trials=6).run.run()
    assert (report.trials, report.new_trials, report.errors) == (6, 4, 0)


def test_ctrl_c_tells_the_observer_and_leaves_whole_records(tmp_path):
    calls = []

    def answer(task, point):
        calls.append(point)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return Outcome("ok", (1e-3,))

    bench = Bench(tmp_path / "r.jsonl", [matmul()], FakeMeasurer(answer), trials=16)
    with pytest.raises(KeyboardInterrupt):
        bench.run.run()
    assert len(bench.records()) == 3
    assert isinstance(bench.events[-1], Interrupted)
    assert bench.events[-1].report.new_trials == 3


def test_ctrl_c_that_a_schedule_swallows_ends_the_run(tmp_path):
    def swallow(_):
        with suppress(KeyboardInterrupt):  # as TVM's C++ does around the Python that it calls
            signal.raise_signal(signal.SIGINT)
        return 0.0

    bench = Bench(tmp_path / "r.jsonl", [matmul()], trials=16)
    bench.ranker.score = swallow
    with pytest.raises(KeyboardInterrupt):
        bench.run.run()
    assert isinstance(bench.events[-1], Interrupted)


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    bench = Bench(tmp_path / "r.jsonl", [matmul()], trials=4)

    def refuse(self, record):
        raise StorageError("no space", "free some")

    monkeypatch.setattr(RecordFile, "append", refuse)
    with pytest.raises(StorageError):
        bench.run.run()


def test_a_machine_that_cannot_build_any_more_leaves_no_record_of_it(tmp_path):
    """Neither of the kernel that was built then, nor of those that wait; they are tried again."""
    path, tasks = tmp_path / "r.jsonl", [matmul()]

    class Full(FakeMeasurer):
        def build(self, candidates):
            if self.ran:
                raise StorageError("no space left in `/tmp`", "free some")
            return super().build(candidates)

    bench = Bench(path, tasks, Full(), trials=16)
    with pytest.raises(StorageError):
        bench.run.run()
    recorded = bench.records()
    assert len(recorded) == len(plan(bench)) > 0
    assert all(record.ok for record in recorded)
    assert Bench(path, tasks, trials=16).run.run().trials == 16


def test_points_of_other_records_are_tried_early_but_do_not_count(tmp_path):
    task = matmul()
    bench = Bench(tmp_path / "a.jsonl", [task], trials=16)
    bench.run.run()
    best = min(bench.records(), key=lambda record: record.seconds)
    foreign = replace(best, origin="estimated", run_secs=(1e-9,))
    other = Bench(tmp_path / "b.jsonl", [task], found=RecordSet((foreign,), (0,)), trials=3)
    report = other.run.run()
    assert report.trials == 3
    assert plan(other)[1][1] == tuple(sorted(best.point.items()))
    assert report.best_secs == best.seconds, "the foreign time itself is not believed"


def test_records_of_points_that_the_space_dropped_do_not_count(tmp_path):
    path, task = tmp_path / "r.jsonl", matmul()
    Bench(path, [task], trials=2).run.run()
    records = read_records(path)[0]
    path.unlink()
    RecordFile(path).append(replace(records[0], point={"rows": 64, "cols": 4}))
    RecordFile(path).append(replace(records[1], key="0123456789abcdef"))
    assert Bench(path, [task], trials=4).run.run().new_trials == 4


def test_the_observer_hears_of_each_batch_and_trial(tmp_path):
    bench = Bench(tmp_path / "r.jsonl", [matmul(), add_one()], trials=9)
    bench.run.run()
    assert isinstance(bench.events[0], Building)
    assert sum(event.count for event in bench.of(Building)) == len(bench.of(TrialDone)) == 9
    assert len(bench.ranker.lessons) == 9


def test_the_report_prints_and_is_plain_data(tmp_path):
    import json

    bench = Bench(tmp_path / "r.jsonl", [matmul(weight=2), unschedulable((1,))], trials=8)
    report = bench.run.run()
    text = str(report)
    assert "all kernels of one inference: default" in text
    assert "2 of 2 kernels have a record; 8 trials (8 new, 0 failed)" in text
    assert "points that could not be scheduled: 1" in text
    assert json.loads(json.dumps(report.to_json()))["tasks"][0]["weight"] == 2


@pytest.mark.parametrize("option", ["timeout", "board_wait"])
@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 1e9])
def test_a_time_to_wait_is_a_week_at_most(option, seconds):
    with pytest.raises(TuningError, match="is out of range"):
        TuneOptions(**{option: seconds}).check()
    TuneOptions(**{option: 604800}).check()
