# SPDX-License-Identifier: Apache-2.0
"""Tuning runs of attendnext_tiny whose board, and whose way to the board, fail again and again.

CI injects a few faults; `pytest -m long tests/tuning/test_faults.py` injects 200.
"""

import os
import random
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import tvm
from fault_proxy import Fault, FaultProxy

from tvmattend.device.endpoint import Endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.frontend import import_model
from tvmattend.target import parse_target
from tvmattend.transform import lower
from tvmattend.tuning import TuneOptions, tune
from tvmattend.tuning.bench import Candidate, Repetition
from tvmattend.tuning.events import Planned, TrialDone
from tvmattend.tuning.measure import KernelMeasurer
from tvmattend.tuning.patience import BOARD_LOST
from tvmattend.tuning.record_file import read_records
from tvmattend.tuning.tasks import extract_tasks

HOST = parse_target("host", 1)
KINDS = ("cut", "delay", "garbage", "corrupt", "half-open", "kill")
# A session uploads a kernel of some ten thousand bytes and reads it back.
REACH = 60_000
# A run of this length ends, whatever happens; a single trial may take timeout + CONNECT.
LIMIT = 600.0
QUICK = TuneOptions(
    number=3, repeat=3, min_repeat_ms=2, timeout=6.0, board_wait=60.0, trials_per_task=10_000
)


class Board:
    """A server of this machine that can be killed, and comes back on its port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._server = serve_here(ServerOptions(port=self.port))

    def kill(self) -> None:
        os.kill(self._server.pid, signal.SIGKILL)
        threading.Thread(target=self._return, daemon=True).start()

    def _return(self) -> None:
        time.sleep(0.3)
        self._server.stop()
        self._server = serve_here(ServerOptions(port=self.port))

    def stop(self) -> None:
        self._server.stop()


def plan(seed, happened):
    """Half of the connections are hit, at any place, by the kind that has happened least yet."""

    def fault(number):
        draw = random.Random(f"{seed}/{number}")
        if draw.random() < 0.5:
            return None
        kind = min(KINDS, key=lambda kind: happened[kind])
        return Fault(kind, draw.randrange(REACH), draw.uniform(0.1, 2.0))

    return fault


def unexplained(done, total):
    """The errors of trials that failed although nothing happened to the board.

    Args:
        done: Error and number of faults until then, of each trial in turn.
        total: Faults in all.
    """
    found = []
    counts = [count for _, count in done]
    for place, (error, _) in enumerate(done):
        # What it is told of may be over for a moment, and the next trial have met a fault.
        before = counts[place - 2] if place > 1 else 0
        after = counts[place + 1] if place + 1 < len(counts) else total
        # On a busy machine a compiler may take too long, whatever happens to the board.
        if error and not error.startswith("building took") and before == after:
            found.append(error)
    return found


def survive(tmp_path, monkeypatch, faults, step):
    """Tune in runs of `step` trials until so many faults have happened, each kind among them, and
    each kernel has a time: the only trial that a run spends on one may meet a fault.
    """
    monkeypatch.setattr("tvmattend.tuning.board_bench.CONNECT_SECONDS", 3.0)
    board = Board()
    tasks = extract_tasks(lower(import_model("attendnext_tiny").ir_module, HOST), HOST)
    timed = set()
    total, runs, incidents, done = 0, 0, [], []
    try:
        with FaultProxy(board.port, lambda _: None) as proxy:
            while (
                sum(proxy.happened.values()) < faults
                or len(proxy.happened) < len(KINDS)
                or timed != {task.key for task in tasks}
            ):
                # Reached in peace, then everything goes wrong: what comes first has its own tests.
                def observe(event, run=runs):
                    if isinstance(event, Planned):
                        proxy._plan = plan(run, proxy.happened)
                    if isinstance(event, TrialDone):
                        done.append((event.record.error, sum(proxy.happened.values())))
                        if event.record.ok:
                            timed.add(event.record.key)

                proxy._plan = lambda _: None
                proxy._kill = board.kill
                total += step
                begun = time.monotonic()
                report = tune(
                    "attendnext_tiny",
                    HOST,
                    Endpoint("127.0.0.1", proxy.port),
                    options=replace(QUICK, trials=total),
                    output=tmp_path / "logs",
                    log=tmp_path / "log",
                    observer=observe,
                )
                runs += 1
                assert time.monotonic() - begun < LIMIT
                assert (report.trials, report.new_trials) == (total, step), "the total is exact"
                incidents += report.incidents.lines()
                print(  # noqa: T201  (the long version runs for a while)
                    f"run {runs}: {sum(proxy.happened.values())} faults, {total} trials, "
                    f"{report.errors} failed, {time.monotonic() - begun:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            happened = dict(proxy.happened)
        records, broken = read_records(report.path)
        assert not broken
        assert len(records) == total
        settled = [
            (record.key, tuple(sorted(record.point.items())))
            for record in records
            if not record.error.startswith(BOARD_LOST)
        ]
        assert len(set(settled)) == len(settled), "no trial twice"
        failed = [record.error for record in records if record.error]
        print(  # noqa: T201
            f"{happened}\n{incidents}\n{failed}", file=sys.stderr
        )
        assert len(done) == total
        assert not unexplained(done, sum(happened.values()))
        assert all(happened[kind] for kind in KINDS), happened
        assert incidents, "the summary says what happened"
        check_best(tasks, records, board.port)
    finally:
        board.stop()


def check_best(tasks, records, port):
    """The best schedule of each kernel computes what the kernel does without any schedule, and
    takes as long as its record says when nothing disturbs it.
    """
    repetition = Repetition(number=3, repeat=5, min_repeat_ms=5, timeout=30.0)
    endpoint = Endpoint("127.0.0.1", port)
    with KernelMeasurer(HOST, repetition, endpoint, "measured", {}) as machine:
        for task in tasks:
            mine = [record for record in records if record.key == task.key and record.ok]
            best = min(mine, key=lambda record: record.seconds)
            schedule = tvm.s_tir.Schedule(task.mod)
            task.space.apply(schedule, best.point)
            plain = Candidate(task, {}, tvm.s_tir.Schedule(task.mod))
            built, unscheduled = machine.build([Candidate(task, best.point, schedule), plain])
            check_numbers(task, built, unscheduled)
            seconds = min(machine.run(built).run_secs)
            # A shared machine is easily three times as slow for a while; garbage is not that near.
            assert 0.25 < best.seconds / seconds < 4, (task.name, best.seconds, seconds)


def check_numbers(task, built, unscheduled):
    """Two libraries of a kernel give the same numbers, up to another order of summation."""
    draw = np.random.default_rng(0)
    given = [
        draw.uniform(0.1, 1.0, [int(size) for size in info.shape]).astype(str(info.dtype))
        for info in built.args_info
    ]
    first, second = (run_kernel(each.path, given) for each in (built, unscheduled))
    changed = 0
    for before, one, other in zip(given, first, second, strict=True):
        changed += not np.array_equal(before, other)
        assert np.isfinite(other).all(), task.name
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert changed, f"{task.name} computed nothing"


def run_kernel(path, given):
    """All tensors after a call on copies of these."""
    tensors = [tvm.runtime.tensor(array.copy()) for array in given]
    tvm.runtime.load_module(path)["main"](*tensors)
    return [tensor.numpy() for tensor in tensors]


@pytest.mark.timeout(900)
def test_a_few_faults(tmp_path, monkeypatch):
    survive(tmp_path, monkeypatch, faults=8, step=12)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_hundred_faults(tmp_path, monkeypatch):
    survive(tmp_path, monkeypatch, faults=200, step=24)
