# SPDX-License-Identifier: Apache-2.0
"""How often something is tried again, whose fault a failure was, and what is never sent again."""

import fcntl
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import RECORD
from sample_tasks import FakeMeasurer, lost, matmul
from test_tuning_run import HOST, Bench

from tvmattend.device.asking import BoardStatus
from tvmattend.device.endpoint import Endpoint
from tvmattend.tuning.bench import (
    Artifact,
    BoardLostError,
    LinkBrokenError,
    Outcome,
    Repetition,
)
from tvmattend.tuning.board_bench import BoardBench
from tvmattend.tuning.events import BoardHot, Repeated
from tvmattend.tuning.patience import (
    BOARD_LOST,
    TOOK_IT_DOWN,
    BoardAwayError,
    Patience,
    back_off,
)
from tvmattend.tuning.record_file import RecordFile, prune, read_records
from tvmattend.tuning.records import RecordSet
from tvmattend.tuning.verdict import judge
from tvmattend.tuning.workplace import open_workplace

OK = Outcome("ok", (1e-3,))
HOT = Outcome("ok", disturbed="throttled", rest=True)
KERNEL = Artifact("unused", ())


class Script:
    """A bench that does what a list says; `answers` says whether the board is back."""

    name = "pi4"

    def __init__(self, *acts, back=()):
        self.acts = list(acts)
        self.back = list(back)
        self.hot_too = []

    def run(self, artifact, hot_too=False):
        assert artifact is KERNEL
        self.hot_too.append(hot_too)
        act = self.acts.pop(0)
        if isinstance(act, Exception):
            raise act
        return act

    def answers(self, seconds):
        del seconds
        return self.back.pop(0) if self.back else True


def patience(events, slept, **options):
    return Patience(events.append, sleep=slept.append, **options)


def measure(*acts, back=(), **options):
    events, slept = [], []
    bench = Script(*acts, back=back)
    outcome = patience(events, slept, **options).measure(bench, KERNEL)
    assert not bench.acts
    return outcome, events, slept


def test_a_broken_connection_is_tried_again_after_growing_waits():
    broken = LinkBrokenError("RPCError: reset by peer")
    outcome, events, slept = measure(broken, broken, broken, OK)
    assert outcome == replace(OK, sent=4)
    assert slept == [0.2, 0.5, 1.0]
    assert [type(event) for event in events] == [Repeated] * 3
    assert events[0] == Repeated("pi4", "RPCError: reset by peer", 0.2)


def test_a_connection_that_always_breaks_is_given_up_and_nobody_is_blamed():
    outcome, _, slept = measure(*[LinkBrokenError("reset")] * 3, link_waits=(1.0, 2.0))
    assert (outcome.status, outcome.quarantined) == ("run-error", False)
    assert outcome.error.startswith(BOARD_LOST)
    assert slept == [1.0, 2.0]


def test_a_kernel_that_ran_when_the_board_went_is_quarantined_before_anybody_waits():
    outcome, events, slept = measure(lost("off"))
    assert (outcome.status, outcome.quarantined, outcome.sent) == ("run-error", True, 1)
    assert outcome.error == f"{TOOK_IT_DOWN}: off"
    assert (events, slept) == ([], [])


def test_a_board_that_goes_before_the_kernel_runs_is_not_its_fault():
    away = BoardLostError("refused", during_kernel=False)
    outcome, _, _ = measure(away, away, away, OK)
    assert outcome.status == "ok"


def test_a_board_that_stays_away():
    events, slept = [], []
    waiting = patience(events, slept, waits=(1.0, 2.0))
    away = BoardLostError("off", during_kernel=False)
    with pytest.raises(BoardAwayError, match="off"):
        waiting.measure(Script(away, back=[False, False]), KERNEL)
    assert slept == pytest.approx([1.0, 2.0], abs=0.1)


def ticking(events):
    """Patience whose time is what it sleeps."""
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    return Patience(events.append, waits=back_off(40.0), sleep=sleep, clock=lambda: now[0]), slept


def test_no_number_of_broken_connections_makes_a_trial_of_a_kernel_that_was_never_sent():
    """The board's time does, as if it were silent."""
    refused = LinkBrokenError("reset", sent=False)
    waiting, slept = ticking([])
    bench = Script(*[refused] * 8, OK)
    assert waiting.measure(bench, KERNEL) == replace(OK, sent=9)
    assert slept == [0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    waiting, slept = ticking([])
    with pytest.raises(BoardAwayError, match="reset") as caught:
        waiting.measure(Script(*[refused] * 99), KERNEL)
    assert not caught.value.sent
    assert 40.0 <= sum(slept) < 48.0
    waiting, slept = ticking([])
    sent = LinkBrokenError("reset")
    outcome = waiting.measure(Script(*[refused] * 3, sent, *[refused] * 3), KERNEL)
    assert outcome.error.startswith(BOARD_LOST)


def test_a_board_that_comes_and_goes_before_a_kernel_is_sent_is_given_up_in_time():
    away = BoardLostError("off", during_kernel=False, sent=False)
    waiting, slept = ticking([])
    with pytest.raises(BoardAwayError) as caught:
        waiting.measure(Script(*[away] * 99), KERNEL)
    assert not caught.value.sent
    assert sum(slept) < 60.0


@pytest.mark.parametrize(
    ("seconds", "waits"),
    [(0, ()), (5, (1, 2, 2)), (31, (1, 2, 4, 8, 16)), (40, (1, 2, 4, 8, 16, 9))],
)
def test_the_waits_make_up_what_the_user_gave(seconds, waits):
    assert back_off(seconds) == waits


@pytest.mark.parametrize(("already", "looks"), [(0.0, 3), (9.0, 2), (30.5, 1), (40.0, 1)])
def test_a_silent_board_is_waited_for_no_longer_than_the_user_gave(already, looks):
    """Each look at it takes ten seconds if it may: they count."""
    now, events = [0.0], []

    def spend(seconds):
        now[0] += seconds

    class Silent(Script):
        def answers(self, seconds):
            spend(min(10.0, seconds))
            return False

    asked = Patience(events.append, waits=back_off(31.0), sleep=spend, clock=lambda: now[0])
    assert not asked.wait_for(Silent(), "no answer", asked=already)
    assert now[0] <= max(0.0, 31.0 - already) + 1.0
    assert len(events) == looks


@pytest.mark.parametrize(("each", "tries"), [(0.5, 7), (16.0, 3), (45.0, 2), (7.0, 4)])
def test_a_board_that_no_session_gets_through_to_is_given_up_in_time_too(each, tries):
    """It answers questions, but its sessions fall silent: a firewall, a broken path MTU."""
    now, sent = [0.0], []

    def spend(seconds):
        now[0] += seconds

    class Stuck(Script):
        def run(self, artifact, hot_too=False):
            del artifact, hot_too
            sent.append(now[0])
            spend(each)
            raise LinkBrokenError("no answer")

    asked = Patience(lambda _: None, waits=back_off(20.0), sleep=spend, clock=lambda: now[0])
    try:
        assert asked.measure(Stuck(), KERNEL).error.startswith(BOARD_LOST)
    except BoardAwayError:
        assert each > 1
    assert len(sent) == tries, "again at least once"
    assert now[0] <= 20.0 + 2 * each


def test_a_throttled_sample_is_measured_again_after_a_rest():
    outcome, events, slept = measure(HOT, replace(OK, disturbed="throttled", rest=True), OK)
    assert outcome == replace(OK, sent=3)
    assert slept == [5.0, 15.0]
    assert [event.wait for event in events if isinstance(event, BoardHot)] == slept


def test_a_board_that_stays_hot_is_measured_all_the_same_and_it_is_said():
    hot = replace(OK, disturbed="under-voltage", rest=True)
    events, slept, bench = [], [], Script(HOT, HOT, hot)
    outcome = patience(events, slept, rests=(1.0, 2.0)).measure(bench, KERNEL)
    assert (outcome.run_secs, outcome.disturbed) == ((1e-3,), "under-voltage")
    assert bench.hot_too == [False, False, True]


def test_figures_that_do_not_agree_are_taken_again_at_once():
    odd = replace(OK, disturbed="the figures do not agree")
    outcome, _, slept = measure(odd, OK)
    assert outcome.disturbed == ""
    assert slept == []


US = {"server": "a", "session": 3, "phase": "run", "error": "RPCError: kShutdown"}


def status(how="", server="a"):
    return BoardStatus(server=server, busy=False, ended={3: how} if how else {})


@pytest.mark.parametrize(
    ("result", "account", "verdict"),
    [
        ({**US, "alive": True}, None, "kernel"),
        (US, status("died of SIGSEGV"), "crash"),
        ({**US, "phase": "prepare"}, status("died of SIGABRT"), "link"),
        (US, status("client left"), "link"),
        (US, status("closed"), "link"),
        (US, status(), "link"),
        ({**US, "silent": True}, status("limit"), "link"),
        ({**US, "error": "RPCSessionTimeoutError: over"}, None, "timeout"),
        ({**US, "error": "RPCSessionTimeoutError: over", "phase": "prepare"}, None, "link"),
        (US, status(server="b"), "board"),
        (US, None, "board"),
        (US, BoardStatus(), "link"),
        # TVM's own server tells nothing.
        ({"phase": "run", "error": "kShutdown"}, BoardStatus(), "crash"),
        ({"phase": "run", "error": "late", "silent": True}, BoardStatus(), "link"),
        ({"phase": "prepare", "error": "kShutdown"}, BoardStatus(), "link"),
        ({}, status(), "link"),
    ],
)
def test_whose_fault_it_was(result, account, verdict):
    assert judge(result, account) == verdict


def _deadly(point):
    def answer(task, tried):
        if dict(tried) == point:
            raise lost("the board rebooted")
        return Outcome("ok", (1e-3,))

    return FakeMeasurer(answer)


def test_what_took_the_board_down_is_recorded_and_never_sent_again(tmp_path):
    task = matmul()
    bad = dict(task.space.default)
    path = tmp_path / "r.jsonl"
    first = Bench(path, [task], _deadly(bad), trials=3)
    report = first.run.run()
    (record,) = [record for record in first.records() if record.quarantined]
    assert (dict(record.point), record.status, record.sent) == (bad, "run-error", 1)
    assert [point for _, point in first.measurer.ran].count(tuple(sorted(bad.items()))) == 1
    assert report.trials == 3

    def sent(bench):
        return tuple(sorted(bad.items())) in [point for _, point in bench.measurer.ran]

    again = Bench(path, [task], _deadly(bad), trials=16)
    assert again.run.run().trials == 16
    assert not sent(again)
    # Nor by a run that writes elsewhere, nor after pruning.
    kept = prune(read_records(path)[0], 1)
    assert record in kept
    found = RecordSet(tuple(kept), tuple(0 for _ in kept))
    elsewhere = Bench(tmp_path / "b.jsonl", [task], _deadly(bad), found=found, trials=16)
    assert elsewhere.run.run().trials == 15, "all but one"
    assert not sent(elsewhere)


def test_conditions_and_spread_are_in_the_record(tmp_path):
    hot = Outcome(
        "ok",
        (1e-3, 3e-3, 2e-3),
        conditions={"before": {"clock_mhz": 1500.0}, "after": {"clock_mhz": 1500.0}},
    )
    bench = Bench(tmp_path / "r.jsonl", [matmul()], FakeMeasurer(lambda *_: hot), trials=1)
    bench.run.run()
    (record,) = bench.records()
    assert record.conditions == hot.conditions
    assert (record.seconds, record.spread) == (2e-3, pytest.approx(1.0))
    line = json.loads((tmp_path / "r.jsonl").read_text())
    assert (line["median_secs"], line["spread"]) == (2e-3, 1.0)


def test_a_record_of_before_has_none_of_it():
    line = json.loads(RECORD.to_line())
    assert not {"conditions", "sent", "quarantined"} & set(line)


@pytest.mark.parametrize("change", [{"sent": "1"}, {"quarantined": 1}, {"conditions": []}])
def test_new_fields_of_a_wrong_type_are_no_record(tmp_path, change):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({**json.loads(RECORD.to_line()), **change}) + "\n")
    records, faults = read_records(path)
    assert (records, len(faults)) == ([], 1)


def test_repairing(tmp_path):
    file = RecordFile(tmp_path / "r.jsonl")
    assert file.repair() == ""
    assert not file.path.exists()
    file.append(RECORD)
    assert file.repair() == ""
    whole = file.path.read_bytes()
    for torn in (whole[:40], b"\0" * 512, b"\xff\xfe"):
        file.path.write_bytes(whole + torn)
        assert f"its {len(torn)} bytes are removed" in file.repair()
        assert file.path.read_bytes() == whole
    file.path.write_bytes(whole[:-1])
    assert "had lost its end: mended" in file.repair()
    assert file.path.read_bytes() == whole
    file.path.write_bytes(whole[:40])
    file.repair()
    assert not file.path.exists(), "nothing was in it"


@pytest.mark.parametrize(
    ("seconds", "flops"),
    [
        ((5.0, 5.0), 0.0),  # longer than the trial took: the board's clock was set
        ((-1e-3, 1e-3), 0.0),
        ((float("nan"), 1e-3), 0.0),
        ((float("inf"), 1e-3), 0.0),
        ((1e-300, 1e-3), 0.0),
        ((1e-6, 1e-6), 1e9),  # a thousand TFLOP/s
    ],
)
def test_figures_that_cannot_be_are_taken_again(tmp_path, seconds, flops):
    bench = BoardBench(
        Endpoint("pi4", 9090), Repetition(1, 2, 0, 1.0), HOST, tmp_path / "probe", tmp_path
    )
    result = {"seconds": seconds, "before": {}, "after": {}}
    with pytest.raises(LinkBrokenError, match="cannot be"):
        bench._times(result, 1.0, flops)
    good = bench._times({**result, "seconds": (1e-3, 2e-3)}, 1.0, 1e6)
    assert (good.run_secs, good.disturbed) == ((1e-3, 2e-3), "")
    odd = bench._times({**result, "seconds": (1e-5, 2e-3)}, 1.0, 1e6)
    assert (odd.disturbed, odd.rest) == ("the figures do not agree", False)


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = ("tvmattend-workplace-dead", "tvmattend-workplace-held", "tvmattend-other")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.so").touch()
    held = os.open(tmp_path / names[1], os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # as another run does, be it in another container
        with open_workplace() as first, open_workplace() as second:
            left = {path.name for path in tmp_path.iterdir()}
            assert left == {*names[1:], Path(first).name, Path(second).name}
    finally:
        os.close(held)
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


@pytest.mark.parametrize("moment", ["os.open", "fcntl.flock"])
def test_a_place_that_another_run_took_for_a_dead_ones_is_made_anew(tmp_path, monkeypatch, moment):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module, _, name = moment.partition(".")
    function, removed = getattr(sys.modules[module], name), []

    def late(*arguments):
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].rmdir()
        return function(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(moment, late)
        place = open_workplace()
    with place as name:
        assert list(tmp_path.iterdir()) == [Path(name)] != removed
