# SPDX-License-Identifier: Apache-2.0
"""The process that boards are talked to in: deadlines, deaths, and what comes back."""

import ctypes
import importlib
import inspect
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import tvmattend
from tvmattend.device.killable import KillableWorker
from tvmattend.errors import BoardMismatchError, TvmattendError
from tvmattend.machine.tracing import ProgramError


def _refuse() -> None:
    raise BoardMismatchError("it is a toaster", "give another address")


def _raise(error: TvmattendError) -> None:
    raise error


def _fail() -> None:
    raise ValueError("seven")


def _die() -> None:
    os.kill(os.getpid(), 11)


def _sleep_with_the_lock() -> None:
    ctypes.PyDLL(None).sleep(600)  # type: ignore[operator]  # as TVM's client does


def _torch() -> bool:
    return sys.modules.get("torch") is not None


def test_results_come_back_and_the_process_stays() -> None:
    with KillableWorker() as worker:
        first = worker.call(60, os.getpid, ())
        assert first != os.getpid()
        assert worker.call(60, bytes, (b"\0" * 5_000_000,)) == b"\0" * 5_000_000
        assert worker.call(60, os.getpid, ()) == first
        assert not worker.call(60, _torch, ())
    assert not psutil.pid_exists(first)


def test_errors_come_back_with_their_hints() -> None:
    with KillableWorker() as worker:
        with pytest.raises(BoardMismatchError, match="toaster") as caught:
            worker.call(60, _refuse, ())
        assert caught.value.hint == "give another address"
        with pytest.raises(RuntimeError, match="ValueError: seven"):
            worker.call(60, _fail, ())
        assert worker.call(60, len, ("abc",)) == 3


def _every_error() -> list[TvmattendError]:
    """One of each class that there is, with words and numbers for its arguments."""
    root = Path(tvmattend.__file__).parent
    for file in root.rglob("*.py"):
        if re.search(r"^class \w+\(\w*Error\)", file.read_text(encoding="utf-8"), re.MULTILINE):
            importlib.import_module(".".join(file.relative_to(root.parent).with_suffix("").parts))
    classes = [TvmattendError]
    for each in classes:
        classes += each.__subclasses__()
    takes = {each: inspect.signature(each).parameters.values() for each in classes}
    return [
        each(*(7 if one.annotation is int else one.name for one in takes[each])) for each in classes
    ]


def test_every_error_comes_back_as_it_is() -> None:
    given = _every_error()
    assert {TvmattendError, BoardMismatchError, ProgramError} <= {type(error) for error in given}
    with KillableWorker() as worker:
        for error in given:
            with pytest.raises(TvmattendError) as caught:
                worker.call(60, _raise, (error,))
            back = caught.value
            assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
            assert (back.hint, back.exit_code) == ("hint", error.exit_code)


def test_a_retired_worker_starts_nothing_any_more() -> None:
    with KillableWorker() as worker:
        pid = worker.call(60, os.getpid, ())
        worker.retire()
        assert not psutil.pid_exists(pid)
        with pytest.raises(ChildProcessError, match="not needed"):
            worker.call(60, os.getpid, ())
        assert not worker.is_alive()


def test_a_crash_is_told_and_the_next_call_has_a_new_process() -> None:
    with KillableWorker(quiet=True) as worker:
        with pytest.raises(ChildProcessError):
            worker.call(60, _die, ())
        assert not worker.is_alive()
        assert worker.call(60, len, ("abc",)) == 3


def test_what_is_late_is_killed_whatever_it_is_doing() -> None:
    with KillableWorker() as worker:
        pid = worker.call(60, os.getpid, ())
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
            worker.call(0.5, _sleep_with_the_lock, ())
        assert time.monotonic() - begun < 5
        assert not psutil.pid_exists(pid)


def test_another_thread_may_end_it() -> None:
    worker = KillableWorker()
    worker.call(60, len, ((),))
    threading.Timer(0.3, worker.end).start()
    with pytest.raises(ChildProcessError):
        worker.call(60, time.sleep, (60,))


def test_it_ends_with_the_process_that_started_it() -> None:
    """However that ends, and whichever of its threads it was; with Python's lock held."""
    program = (
        "import os, threading, test_killable as here\n"
        "worker = here.KillableWorker()\n"
        "show = lambda: print(worker.call(60, os.getpid, ()), flush=True)\n"
        "starter = threading.Thread(target=show)\n"
        "starter.start(); starter.join()\n"
        "worker.call(60, here._sleep_with_the_lock, ())\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        time.sleep(1)
        assert worker.is_running(), "the thread that started it is gone"
        process.kill()
        worker.wait(10)
