# SPDX-License-Identifier: Apache-2.0
"""Signals that come while Python is called by what swallows its exceptions."""

import signal
import threading
from contextlib import contextmanager, suppress

import pytest
import tvm

from tvmattend.errors import compiling
from tvmattend.interrupts import kept

STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def handlers():
    return [signal.getsignal(number) for number in STOPPING]


@pytest.fixture(autouse=True)
def _same_handlers_afterwards():
    before = handlers()
    yield
    after = handlers()
    for number, handler in zip(STOPPING, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@contextmanager
def as_tvm_tells():
    try:
        yield
    except BaseException as error:
        raise RuntimeError("a callback failed") from error


def interrupted_pass(module, _):
    signal.raise_signal(signal.SIGINT)
    return module


def test_an_interrupt_in_a_pass_that_tvm_calls_is_one():
    step = tvm.transform.module_pass(interrupted_pass, opt_level=0)
    with pytest.raises(KeyboardInterrupt), compiling("a network", "report it"):
        step(tvm.IRModule({}))


def test_an_interrupt_that_somebody_swallows_ends_the_step_all_the_same():
    with pytest.raises(KeyboardInterrupt), kept(), kept(), suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", STOPPING)
def test_what_the_handler_raises_comes_in_place_of_what_was_made_of_it(number):
    def handler(*_):
        raise KeyboardInterrupt(number)

    before = signal.signal(number, handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=str(int(number))), kept(), as_tvm_tells():
            signal.raise_signal(number)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_a_handler_that_raises_nothing_stops_nothing():
    """As `tvmattend.cli` answers a second signal."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with kept():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_other_errors_pass():
    with pytest.raises(ValueError, match="own"), kept():
        raise ValueError("own")


def test_another_thread_leaves_the_handlers_alone():
    seen = []

    def work():
        with kept():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers()]
