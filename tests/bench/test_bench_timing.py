# SPDX-License-Identifier: Apache-2.0
"""Statistics and interleaving, on made-up times."""

from collections.abc import Callable

import pytest

from tvmattend.bench.timing import Timing, interleave, ratio, ratio_range
from tvmattend.errors import BenchmarkError


def constant(seconds: float, log: list[str], name: str) -> Callable[[], list[float]]:
    def burst() -> list[float]:
        log.append(name)
        return [seconds, seconds]

    return burst


def test_turns_go_round() -> None:
    log: list[str] = []
    bursts = {name: constant(1.0, log, name) for name in "ABC"}
    timings, failed = interleave(bursts, 3)
    assert log == list("ABCABCABC")
    assert [len(timings[name].rounds) for name in "ABC"] == [3, 3, 3]
    assert failed == {}


def test_every_burst_is_preceded_by_a_pause() -> None:
    log: list[str] = []
    bursts = {name: constant(1.0, log, name) for name in "AB"}
    interleave(bursts, 2, pause=lambda: log.append("-"))
    assert log == list("-A-B-A-B")


def test_observer_is_told_round_and_name() -> None:
    told: list[tuple[int, str]] = []
    bursts = {name: constant(1.0, [], name) for name in "AB"}
    interleave(bursts, 2, observer=lambda number, name: told.append((number, name)))
    assert told == [(0, "A"), (0, "B"), (1, "A"), (1, "B")]


def test_a_runtime_that_fails_loses_its_times_and_the_others_go_on() -> None:
    log: list[str] = []
    turns = iter([[1.0], None])

    def dies() -> list[float]:
        log.append("B")
        times = next(turns)
        if times is None:
            raise BenchmarkError("gone")
        return times

    bursts = {"A": constant(1.0, log, "A"), "B": dies, "C": constant(2.0, log, "C")}
    timings, failed = interleave(bursts, 3)
    assert set(timings) == {"A", "C"}
    assert str(failed["B"]) == "gone"
    assert log == list("ABCABCAC")


def test_another_error_is_not_swallowed() -> None:
    def broken() -> list[float]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"A": broken}, 1)


def test_statistics() -> None:
    timing = Timing(((1.0, 3.0), (2.0, 10.0, 4.0)))
    assert timing.median == 3.0
    assert timing.least == 1.0
    assert timing.greatest == 10.0
    assert timing.by_round() == [2.0, 4.0]
    # Quartiles of 1 2 3 4 10 are 2 and 4.
    assert timing.spread == pytest.approx(1.0 / 3.0)


def test_one_outlier_moves_neither_median_nor_spread() -> None:
    quiet, disturbed = Timing(((1.0,) * 9,)), Timing(((1.0,) * 8 + (50.0,),))
    assert disturbed.median == quiet.median
    assert disturbed.spread == quiet.spread == 0.0


def test_spread_of_one_time() -> None:
    assert Timing(((0.5,),)).spread == 0.0


def test_ratio_is_above_one_when_ours_is_faster() -> None:
    assert ratio(Timing(((3.0,),)), Timing(((2.0,),))) == 1.5


def test_drift_cancels_out_in_the_ratio_by_rounds() -> None:
    # The machine slows down fourfold from round to round; the ratio is 2 in each of them.
    ours = Timing(((1.0,), (4.0,), (16.0,)))
    peer = Timing(((2.0,), (8.0,), (32.0,)))
    assert ratio_range(peer, ours) == (2.0, 2.0)


def test_ratio_of_a_single_round() -> None:
    assert ratio_range(Timing(((3.0,),)), Timing(((2.0,),))) == (1.5, 1.5)
