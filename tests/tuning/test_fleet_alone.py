# SPDX-License-Identifier: Apache-2.0
"""A fleet of one board that knows every time, or is not there: its order and its records."""

import random
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from sample_tasks import FakeRanker, matmul, seconds_of
from test_tuning_run import HOST

from tvmattend.device.endpoint import Endpoint
from tvmattend.errors import StorageError, TuningError
from tvmattend.tuning import roster
from tvmattend.tuning.bench import Artifact, BoardLostError, Outcome
from tvmattend.tuning.events import TuneOptions
from tvmattend.tuning.fleet import Fleet
from tvmattend.tuning.patience import Patience
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.records import RecordSet
from tvmattend.tuning.run import TuningRun
from tvmattend.tuning.tally import Tally


class FakeShop:
    """Builds at once; its benches know every time."""

    origin = "measured"
    machine: Mapping[str, object] = MappingProxyType({"core": "fake"})

    def __init__(self):
        self.sent = []

    def build(self, candidates):
        return [Artifact("unused", candidate) for candidate in candidates]

    def discard(self, artifact):
        assert artifact.path == "unused"

    def open_bench(self, roster):
        assert roster is None
        return FakeBoard(self.sent)


class FakeBoard:
    name = "pi4"
    board = Endpoint("pi4", 9090)

    def __init__(self, sent):
        self.sent = sent

    def run(self, artifact, hot_too=False):
        del hot_too
        item = artifact.args_info
        self.sent.append((item.task.name, tuple(sorted(item.point.items()))))
        time.sleep(random.uniform(0, 0.01))
        return Outcome("ok", (seconds_of(item.task, item.point),))

    def answers(self, seconds):
        del seconds
        return True

    def wake(self):
        pass

    take_seat = leave_seat = end = lambda *_: None


def tune(shop, path, total, waits=(0.01, 0.01)):
    """A run that goes on with what the file holds."""
    tally = Tally(lambda _: None)
    with Fleet(shop, Endpoint("pi4", 9090), Patience(tally, waits=waits), tally, 10.0) as fleet:
        return TuningRun(
            model="net",
            target=HOST,
            tasks=[matmul(), matmul(32, name="small"), matmul(48, name="other")],
            file=RecordFile(path),
            earlier=read_records(path)[0] if path.exists() else [],
            found=RecordSet(),
            options=TuneOptions(trials=total, seed=3),
            crew=fleet,
            ranker=FakeRanker(),
            observer=tally,
        ).run()


def test_with_one_board_the_same_seed_and_records_give_the_same_plan(tmp_path):
    plans = []
    for number in range(3):
        path = tmp_path / f"{number}.jsonl"
        sent = []
        for total in (9, 30):  # the second goes on from the records of the first
            shop = FakeShop()
            assert tune(shop, path, total).trials == total
            sent.append(shop.sent)
        plans.append(sent)
    assert plans[0] == plans[1] == plans[2]
    assert [len(part) for part in plans[0]] == [9, 21]


def test_a_fleet_that_cannot_build_says_so_and_leaves_no_record_of_it(tmp_path):
    class Full(FakeShop):
        def build(self, candidates):
            if self.sent:
                raise StorageError("no space left in `/tmp`", "free some")
            return super().build(candidates)

    path = tmp_path / "r.jsonl"
    with pytest.raises(StorageError, match="no space left"):
        tune(Full(), path, 30)
    # The fault may be quicker than the first record.
    assert all(record.ok for record in (read_records(path)[0] if path.exists() else ()))
    assert tune(FakeShop(), path, 30).trials == 30


@pytest.mark.parametrize("sent", [True, False])
def test_a_kernel_whose_board_is_gone_is_recorded_only_if_it_was_sent(tmp_path, sent):
    class Gone(FakeBoard):
        def run(self, artifact, hot_too=False):
            if len(self.sent) == 3:
                raise BoardLostError("off", during_kernel=False, sent=sent)
            return super().run(artifact, hot_too)

        def answers(self, seconds):
            del seconds
            return False

    class Shop(FakeShop):
        def open_bench(self, roster):
            assert roster is None
            return Gone(self.sent)

    path = tmp_path / "r.jsonl"
    with pytest.raises(TuningError, match="did not come back: off"):
        tune(Shop(), path, 10)
    records = read_records(path)[0]
    assert [record.ok for record in records] == [True] * 3 + [False] * sent


def test_a_board_that_joins_while_the_run_ends_gets_no_lane(monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def registered(endpoint):
        asked.set()
        answer.wait(10)
        return [("pi4", "one", 9090), ("pi4", "two", 9090)], {}

    opened = []

    class Shop(FakeShop):
        def open_bench(self, _):
            opened.append(FakeBoard(self.sent))
            return opened[-1]

    monkeypatch.setattr(roster, "registered", registered)
    tracker = Endpoint("farm", 9190, "pi4")
    with Fleet(Shop(), tracker, Patience(print, waits=(0.01,)), print, 10.0):
        assert asked.wait(10)
    (scout,) = [thread for thread in threading.enumerate() if thread.name == "tvmattend-scout"]
    answer.set()
    scout.join(10)
    assert not scout.is_alive()
    assert len(opened) == 1
