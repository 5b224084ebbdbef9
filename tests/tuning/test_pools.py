# SPDX-License-Identifier: Apache-2.0
"""Worker processes: what comes back from them, how they end, and that nothing is said about it."""

import gc
import os
import signal
import sys
import threading
import time

import psutil
import pytest

from tvmattend.tuning.bench import Repetition
from tvmattend.tuning.local_bench import LocalBench
from tvmattend.tuning.pools import ENDED, DiedError, Pool


@pytest.fixture(scope="module")
def pool():
    made = Pool(timeout=60.0, processes=1)
    yield made
    made.end()


def test_a_value_and_an_error_come_back_from_the_same_process(pool):
    worker = pool.submit(os.getpid).result()
    with pytest.raises(FileNotFoundError):
        pool.submit(os.stat, "/no/such/place").result()
    assert pool.submit(os.getpid).result() == worker


@pytest.mark.parametrize(
    ("act", "argument", "code", "words"),
    [
        (os._exit, 1, 1, "exit code 1"),
        (signal.raise_signal, signal.SIGSEGV, -signal.SIGSEGV, "SIGSEGV"),
        (signal.raise_signal, signal.SIGKILL, -signal.SIGKILL, "SIGKILL"),
    ],
)
def test_how_a_process_died_is_told_and_the_next_job_has_another(pool, act, argument, code, words):
    before = pool.submit(os.getpid).result()
    with pytest.raises(DiedError, match=f"{ENDED}: {words}") as caught:
        pool.submit(act, argument).result()
    assert caught.value.code == code
    assert pool.submit(os.getpid).result() != before


def test_a_job_that_is_late_is_given_up():
    pool = Pool(timeout=1.0, processes=1)
    try:
        with pytest.raises(TimeoutError):
            pool.submit(time.sleep, 60).result()
    finally:
        pool.end()


def test_ending_a_pool_at_work_takes_no_time_and_leaves_no_process():
    pool = Pool(timeout=60.0, processes=2)
    workers = [psutil.Process(pool.submit(os.getpid).result()) for _ in range(2)]
    jobs = [pool.submit(time.sleep, 60) for _ in range(3)]
    time.sleep(0.2)
    begun = time.monotonic()
    pool.end()
    assert time.monotonic() - begun < 5.0
    assert not psutil.wait_procs(workers, timeout=5)[1]
    assert [job.done() for job in jobs] == [True] * 3


def test_an_interrupt_while_the_runner_starts_says_nothing_afterwards(monkeypatch, tmp_path):
    """TVM's pool is collected in its own thread then, which it tries to join."""
    from tvm.s_tir.meta_schedule.runner import LocalRunner

    def interrupted(self):
        self.pool.submit(time.sleep, 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalRunner._cls, "_sanity_check", interrupted)
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    before = threading.active_count()
    try:
        LocalBench(Repetition(1, 1, 0, 30.0), 1, tmp_path)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("it was not interrupted")
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.1)
    assert said == []
    assert threading.active_count() == before
