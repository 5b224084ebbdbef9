# SPDX-License-Identifier: Apache-2.0
"""Fleets: four boards beside one, one that dies, boards that come, differ, or are not fit."""

import contextlib
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from types import MappingProxyType

import pytest
from fault_proxy import Fault, FaultProxy
from sample_tasks import FakeRanker, matmul, seconds_of

from tvmattend.device.board import BoardInfo
from tvmattend.device.endpoint import Endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.errors import NoFreeBoardError
from tvmattend.target import parse_target
from tvmattend.tuning.bench import Artifact, BoardLostError, Outcome, Repetition
from tvmattend.tuning.events import BoardJoined, BoardLeft, TrialDone, TuneOptions
from tvmattend.tuning.fleet import Fleet
from tvmattend.tuning.machine import host_machine
from tvmattend.tuning.measure import KernelMeasurer
from tvmattend.tuning.patience import Patience
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.records import RecordSet
from tvmattend.tuning.roster import Roster, difference
from tvmattend.tuning.run import TuningRun
from tvmattend.tuning.tally import Tally

HOST = parse_target("host", 1)
KEY = "pi4"


class SlowBoards:
    """Servers at a tracker, each behind a proxy that holds every session back for some seconds."""

    def __init__(self, tracker, stack):
        self._tracker = tracker
        self._stack = stack
        self.servers = []

    def add(self, seconds):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        proxy = self._stack.enter_context(FaultProxy(port, lambda _: Fault("delay", 0, seconds)))
        options = ServerOptions(
            port=port, tracker=self._tracker, advertise=("127.0.0.1", proxy.port)
        )
        self.servers.append(self._stack.enter_context(serve_here(options)))


@contextlib.contextmanager
def fleet_run(path, endpoint, trials, observe=lambda _: None, wait=30.0):
    """A run over sample tasks, which are built in no time."""
    tally = Tally(observe)
    machine = {**host_machine(), "core": "x86_64"}
    repetition = Repetition(number=1, repeat=1, min_repeat_ms=0, timeout=10.0)
    tasks = [matmul(size, name=f"m{size}") for size in (16, 32, 48, 64)]
    with (
        KernelMeasurer(HOST, repetition, endpoint, "measured", machine) as shop,
        Fleet(shop, endpoint, Patience(tally, waits=(0.2, 0.4)), tally, wait) as fleet,
    ):
        yield TuningRun(
            model="net",
            target=HOST,
            tasks=tasks,
            file=RecordFile(path),
            earlier=read_records(path)[0] if path.exists() else [],
            found=RecordSet(),
            options=TuneOptions(trials=trials),
            crew=fleet,
            ranker=FakeRanker(),
            observer=tally,
            incidents=tally.incidents,
        )


def rate(moments):
    """Trials a second, without the first third, in which lanes start."""
    steady = moments[len(moments) // 3 :]
    return (len(steady) - 1) / (steady[-1] - steady[0])


def points_of(path, quarantined=0):
    """The points of a file's records: each measured, or one of ``quarantined`` at most."""
    records, faults = read_records(path)
    assert not faults
    failed = [record for record in records if not record.ok]
    assert all(record.quarantined for record in failed), [record.error for record in failed]
    assert len(failed) <= quarantined, [record.error for record in failed]
    return [(record.key, tuple(sorted(record.point.items()))) for record in records]


def compare(tmp_path, tracker, seconds, one, four):
    """Trials a second with one board and with four, of which one is killed in another run."""
    rates = {}
    with contextlib.ExitStack() as stack:
        boards = SlowBoards(tracker, stack)
        for count, trials in ((1, one), (4, four)):
            while len(boards.servers) < count:
                boards.add(seconds)
            moments = []

            def observe(event, moments=moments):
                if isinstance(event, TrialDone):
                    moments.append(time.monotonic())

            with fleet_run(tmp_path / f"{count}.jsonl", tracker, trials, observe) as run:
                report = run.run()
            assert report.trials == len(set(points_of(report.path))) == trials
            rates[count] = rate(moments)
        print(  # noqa: T201
            f"one board {60 * rates[1]:.1f} trials a minute, four {60 * rates[4]:.1f}: "
            f"{rates[4] / rates[1]:.2f}x; sessions held back {seconds:g} s"
        )
        assert rates[4] >= 2.5 * rates[1], rates

        def kill_one(event):
            if isinstance(event, TrialDone) and event.done == four // 2:
                os.kill(boards.servers[2].pid, signal.SIGKILL)

        with fleet_run(tmp_path / "killed.jsonl", tracker, four, kill_one) as run:
            report = run.run()
        # The kernel that ran on the killed board, if one did, cannot be told from a culprit.
        points = set(points_of(report.path, quarantined=1))
        assert report.trials == len(points) == four, "nothing lost"
        assert report.incidents.quarantined <= 1, report.incidents
        assert len(report.incidents.left) == 1, report.incidents
        # Killed while it was greeted, it has hung up, and is at the tracker for a moment yet.
        reasons = ("left: it is not at the tracker any more", "or one that has just ended")
        assert any(reason in str(report) for reason in reasons)


def test_four_boards_beside_one_and_one_of_four_killed(tmp_path, tracker):
    compare(tmp_path, tracker, seconds=2.0, one=9, four=24)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_four_boards_beside_one_for_longer(tmp_path, tracker):
    compare(tmp_path, tracker, seconds=4.0, one=18, four=60)


def test_a_slow_board_holds_nobody_back_and_one_that_joins_is_used(tmp_path, tracker):
    seen = []
    with contextlib.ExitStack() as stack:
        boards = SlowBoards(tracker, stack)
        boards.add(0.0)
        boards.add(6.0)

        def observe(event):
            seen.append(event)
            if isinstance(event, TrialDone) and event.done == 10:
                thread = threading.Thread(target=boards.add, args=(0.0,))
                thread.start()
                stack.callback(thread.join)

        with fleet_run(tmp_path / "r.jsonl", tracker, 60, observe) as run:
            report = run.run()
    assert report.trials == len(set(points_of(report.path))) == 60
    assert len(report.incidents.boards) >= 2
    met = {event.board for event in seen if isinstance(event, BoardJoined)}
    assert met == set(report.incidents.boards)
    assert "boards: " in str(report)


def test_without_any_board_for_long_enough_the_run_ends(tmp_path, tracker):
    with contextlib.ExitStack() as stack:
        boards = SlowBoards(tracker, stack)
        boards.add(0.0)

        def observe(event):
            if isinstance(event, TrialDone) and event.done == 5:
                boards.servers[0].stop()

        with fleet_run(tmp_path / "r.jsonl", tracker, 20, observe, wait=3.0) as run:
            begun = time.monotonic()
            with pytest.raises(NoFreeBoardError, match="could be had for 3 s") as caught:
                run.run()
    assert "repeat the command to go on" in caught.value.hint
    assert time.monotonic() - begun < 90
    assert len(read_records(tmp_path / "r.jsonl")[0]) >= 5


class TwoBoards:
    """A shop for a key with two boards: one is silent, the other is for a while somebody else's."""

    origin = "measured"
    machine = MappingProxyType({"emulated": False})
    silent, good = Endpoint("silent", 1), Endpoint("good", 1)
    held = 2.5  # seconds that the silent one costs whoever asks it
    taken = 1.0  # seconds that the other is taken from then on

    def __init__(self):
        self.wakes = None
        self.asked = []

    def build(self, candidates):
        return [Artifact("unused", candidate) for candidate in candidates]

    def discard(self, artifact):
        pass

    def open_bench(self, roster):
        assert roster is not None
        return TwoBoardsBench(self)


class TwoBoardsBench:
    board = TwoBoards.silent

    def __init__(self, shop):
        self.shop = shop

    @property
    def name(self):
        return str(self.board)

    def take_seat(self, timeout):
        del timeout
        if len(self.shop.asked) < 2:  # both lanes
            self.shop.asked.append(self)
        elif self.shop.wakes is None or time.monotonic() < self.shop.wakes:
            raise NoFreeBoardError("somebody else's")
        else:
            self.board = TwoBoards.good

    def run(self, artifact, hot_too=False):
        del hot_too
        if self.board == TwoBoards.good:
            item = artifact.args_info
            return Outcome("ok", (seconds_of(item.task, item.point),))
        time.sleep(TwoBoards.held)
        self.shop.wakes = time.monotonic() + TwoBoards.taken
        raise BoardLostError("silence", False, 0.0, sent=False)

    def answers(self, seconds):
        del seconds
        return False

    wake = leave_seat = end = lambda *_: None


def test_who_waited_for_a_silent_board_has_time_to_ask_for_another(tmp_path, monkeypatch):
    present = [(KEY, board.host, board.port) for board in (TwoBoards.silent, TwoBoards.good)]
    monkeypatch.setattr("tvmattend.tuning.roster.registered", lambda _: (present, None))
    tally = Tally(lambda _: None)
    patience = Patience(tally, waits=(0.1,))
    with Fleet(TwoBoards(), Endpoint("t", 1, KEY), patience, tally, board_wait=2.0) as fleet:
        report = TuningRun(
            model="net",
            target=HOST,
            tasks=[matmul()],
            file=RecordFile(tmp_path / "r.jsonl"),
            earlier=[],
            found=RecordSet(),
            options=TuneOptions(trials=8),
            crew=fleet,
            ranker=FakeRanker(),
            observer=tally,
            incidents=tally.incidents,
        ).run()
    assert report.trials == len(points_of(report.path)) == 8


PI = BoardInfo("a:1", "aarch64", "cortex-a72", 4, "Pi 4", False, "performance", 1500.0)


@pytest.fixture
def roster():
    told = []
    first = {
        "core": "cortex-a72",
        "model": "Pi 4",
        "cores": 4,
        "clock_mhz": 1500.0,
        "governor": "performance",
        "emulated": False,
    }
    return Roster(Endpoint("t", 1, KEY), first, told.append), told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"clock_mhz": 1510.0}, ""),
        ({"core": "cortex-a76"}, "core cortex-a76 instead of cortex-a72"),
        ({"governor": "ondemand"}, "governor ondemand instead of performance"),
        ({"clock_mhz": 1800.0}, "clock 1800 instead of 1500 MHz"),
        ({"core_count": 2}, "cores 2 instead of 4"),
    ],
)
def test_boards_of_a_key_that_differ_are_noticed(roster, change, says):
    boards, told = roster
    place = Endpoint("a", 1)
    assert not boards.examined(place, None), "nobody met it"
    assert boards.examined(place, replace(PI, **change))
    assert boards.examined(place, None)
    assert [event.difference for event in told] == [says]
    assert boards.examined(place, replace(PI, **change))
    assert len(told) == 1, "said once"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("the board is x86_64, the target is aarch64", "the board is x86_64"),
        (replace(PI, emulated=True), "it is emulated, and the first board is not"),
    ],
)
def test_a_board_that_does_not_fit_is_not_used_and_said(roster, found, reason):
    boards, told = roster
    place = Endpoint("a", 1)
    assert boards.welcome(place)
    assert not boards.examined(place, found)
    assert not boards.welcome(place)
    (event,) = told
    assert isinstance(event, BoardLeft)
    assert reason in event.reason


def test_difference_of_nothing():
    assert difference({"core": "a"}, {"core": "a"}) == ""
