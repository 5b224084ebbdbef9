# SPDX-License-Identifier: Apache-2.0
"""Worker processes: what comes back from them, how they end, and when they are replaced."""

import errno
import os
import signal
import time
from functools import partial

import psutil
import pytest

from tvmattend.tuning import pools
from tvmattend.tuning.pools import DiedError, Pool, Worker


@pytest.fixture(scope="module")
def pool():
    made = Pool(timeout=60.0, processes=1)
    yield made
    made.end()


def test_a_value_and_an_error_come_back_from_the_same_process(pool):
    worker = pool.submit(os.getpid).result()
    with pytest.raises(RuntimeError, match=r"FileNotFoundError: .*'/no/such/place'"):
        pool.submit(os.stat, "/no/such/place").result()
    assert pool.submit(os.getpid).result() == worker


@pytest.mark.parametrize(
    ("act", "argument", "code", "words"),
    [
        (os._exit, 1, 1, "exit code 1"),
        (signal.raise_signal, signal.SIGSEGV, -signal.SIGSEGV, "SIGSEGV"),
        (signal.raise_signal, signal.SIGKILL, -signal.SIGKILL, "SIGKILL"),
        (signal.raise_signal, signal.SIGRTMIN + 1, -signal.SIGRTMIN - 1, "signal 3."),
    ],
)
def test_how_a_process_died_is_told_and_the_next_job_has_another(pool, act, argument, code, words):
    before = pool.submit(os.getpid).result()
    with pytest.raises(DiedError, match=f"the worker process ended: {words}") as caught:
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


def test_a_process_is_replaced_after_so_many_jobs():
    pool = Pool(timeout=60.0, processes=1, uses=2)
    try:
        first, second, third = (pool.submit(os.getpid).result() for _ in range(3))
    finally:
        pool.end()
    assert first == second != third
    assert not psutil.pid_exists(first)


def test_the_time_of_a_job_begins_when_its_process_is_ready(monkeypatch):
    monkeypatch.setattr(pools.workers, "wake", partial(time.sleep, 1.0))
    worker = Worker(timeout=0.5)
    try:
        assert worker.call(len, "abc") == 3
        with pytest.raises(TimeoutError):
            worker.call(time.sleep, 60)
    finally:
        worker.end()


def test_a_process_that_cannot_be_started_is_its_own_error(monkeypatch):
    def no_more(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("tvmattend.device.killable.subprocess.Popen", no_more)
    with pytest.raises(OSError, match="Too many open files") as caught:
        Worker(timeout=1.0).call(len, "abc")
    assert caught.value.errno == errno.EMFILE
