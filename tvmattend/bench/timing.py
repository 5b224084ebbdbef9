# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, and what is said of the times. No runtime is known here."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tvmattend.errors import TvmattendError

Burst = Callable[[], Sequence[float]]


@dataclass(frozen=True)
class Timing:
    """The times of one runtime.

    Attributes:
        rounds: Seconds of each inference, a tuple for each round.
    """

    rounds: tuple[tuple[float, ...], ...] = field(repr=False)

    @property
    def seconds(self) -> list[float]:
        """All times, in the order in which they were taken."""
        return [value for times in self.rounds for value in times]

    @property
    def median(self) -> float:
        """Median over all inferences, in seconds."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """Shortest inference, in seconds."""
        return min(self.seconds)

    @property
    def greatest(self) -> float:
        """Longest inference, in seconds."""
        return max(self.seconds)

    @property
    def spread(self) -> float:
        """Half the range of the middle half of the times, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    def by_round(self) -> list[float]:
        """Median of each round, in seconds."""
        return [statistics.median(times) for times in self.rounds]


def ratio(peer: Timing, ours: Timing) -> float:
    """How many times as long the peer takes: above 1, ours is faster."""
    return peer.median / ours.median


def ratio_range(peer: Timing, ours: Timing) -> tuple[float, float]:
    """Quartiles of the ratio taken round by round.

    The two of a round ran within a second or two of each other, so a drift of the clock or a
    colleague's job that comes and goes cancels out here.
    """
    pairs = zip(peer.by_round(), ours.by_round(), strict=False)
    values = [theirs / own for theirs, own in pairs]
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def interleave(
    bursts: Mapping[str, Burst],
    rounds: int,
    pause: Callable[[], None] = lambda: None,
    observer: Callable[[int, str], None] = lambda _round, _name: None,
) -> tuple[dict[str, Timing], dict[str, TvmattendError]]:
    """Time A B C, A B C, ...: a slow minute of the machine falls on all of them.

    Args:
        bursts: For each name a function that runs it for a moment and gives the seconds of each
            inference.
        rounds: How often each has its turn.
        pause: Called between bursts, for threads that still spin to go to sleep.
        observer: Told the round, from 0, and the name ahead of each burst.

    Returns:
        The times, and the errors of those that failed on the way: they have no times.
    """
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in bursts}
    failed: dict[str, TvmattendError] = {}
    for number in range(rounds):
        for name, burst in bursts.items():
            if name in failed:
                continue
            observer(number, name)
            pause()
            try:
                taken[name].append(tuple(burst()))
            except TvmattendError as error:
                failed[name] = error
    timings = {name: Timing(tuple(times)) for name, times in taken.items() if name not in failed}
    return timings, failed
