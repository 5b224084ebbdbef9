# SPDX-License-Identifier: Apache-2.0
"""Fit the model's few numbers on published latencies, and say how well it does on those left out.

Gauss-Newton on the logarithms: errors are ratios, and the numbers are positive. Each number is held
within its plausible range and drawn to the literature's value: the least squares are those of
networks known to 3 % and numbers known to 30 %. Without that, numbers that a dozen networks cannot
tell apart wander to the ends of their ranges for a hundredth of the error.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tvmattend.machine.parameters import FITTED, Parameters

# Relative step of the difference quotients. Stalls come and go with single cycles, so a small step
# would measure noise.
_STEP = 0.05
_PULL = 0.1

# Seconds under given parameters of the networks with these places in the list.
Model = Callable[[Parameters, Sequence[int]], Sequence[float]]


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        parameters: The best.
        estimated: Seconds of each network under them.
        left_out: Seconds of each network under parameters fitted without it.
    """

    parameters: Parameters
    estimated: tuple[float, ...]
    left_out: tuple[float, ...]


class Slope(NamedTuple):
    """Difference quotients, a row a network and a column a parameter."""

    names: tuple[str, ...]
    matrix: np.ndarray


def fit(
    model: Model,
    published: Sequence[float],
    start: Parameters,
    names: Sequence[str],
    rounds: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> Fit:
    """Fit, then fit again without each network in turn.

    Leaving out one of a dozen moves the numbers little, so those fits take one Gauss-Newton step
    from the common one; the left-out network is then estimated exactly.

    Args:
        model: Seconds of each network.
        published: Seconds that were measured.
        start: Where to start, and what is not fitted.
        names: Of the parameters to fit, keys of `FITTED`.
        rounds: At most.
        progress: Told the error of each round.
    """
    low = np.log([FITTED[name].low for name in names])
    high = np.log([FITTED[name].high for name in names])
    origin = np.log([FITTED[name].typical for name in names])
    target = np.log(np.asarray(published))
    every = range(len(published))

    def errors(x: np.ndarray) -> np.ndarray:
        logs: np.ndarray = np.log(np.asarray(model(_with(start, names, x), every))) - target
        return logs

    x = np.clip(np.log([getattr(start, name) for name in names]), low, high)
    at = errors(x)
    for number in range(rounds):
        progress(f"round {number}: mean error {100 * _mape(at):.2f} %, {_shown(names, x)}")
        slope = _slope(errors, x, at, high)
        for damping in (1.0, 0.5, 0.25):
            candidate = np.clip(x + damping * _step(slope, at, x, origin, low, high), low, high)
            there = errors(candidate)
            if _loss(there, candidate, origin) < _loss(at, x, origin):
                break
        else:
            break
        gained = _loss(at, x, origin) - _loss(there, candidate, origin)
        x, at = candidate, there
        if gained < 1e-3 * _loss(at, x, origin):
            break
    slope = _slope(errors, x, at, high)
    left_out = []
    for number in range(len(published)):
        keep = np.arange(len(published)) != number
        other = np.clip(x + _step(slope[keep], at[keep], x, origin, low, high), low, high)
        left_out.append(float(model(_with(start, names, other), [number])[0]))
    seconds = tuple(float(s) for s in np.exp(at + target))
    return Fit(_with(start, names, x), seconds, tuple(left_out))


def refit(
    model: Model, published: Sequence[float], base: Sequence[float], slope: Slope, start: Parameters
) -> tuple[Parameters, tuple[float, ...]]:
    """Fit by one Gauss-Newton step, with the slope of a model that is nearly the same.

    Args:
        model: Seconds of each network, under a changed model.
        published: Seconds that were measured.
        base: Seconds of each network at `start`, under the changed model.
        slope: Of the unchanged model, at `start`.
        start: Where the slope was taken.

    Returns:
        The parameters, and seconds of each network under them.
    """
    names = slope.names
    low = np.log([FITTED[name].low for name in names])
    high = np.log([FITTED[name].high for name in names])
    origin = np.log([FITTED[name].typical for name in names])
    x = np.log([getattr(start, name) for name in names])
    at = np.log(np.asarray(base)) - np.log(np.asarray(published))
    found = _with(start, names, x + _step(slope.matrix, at, x, origin, low, high))
    seconds = tuple(float(s) for s in model(found, range(len(published))))
    if _loss(np.log(np.asarray(seconds) / published), x, x) > _loss(at, x, x):
        return start, tuple(base)
    return found, seconds


def slope_of(model: Model, count: int, start: Parameters, names: Sequence[str]) -> Slope:
    """Give the change of each network's logarithm with each parameter's."""
    x = np.log([getattr(start, name) for name in names])
    high = np.log([FITTED[name].high for name in names])

    def logs(at: np.ndarray) -> np.ndarray:
        result: np.ndarray = np.log(np.asarray(model(_with(start, names, at), range(count))))
        return result

    return Slope(tuple(names), _slope(logs, x, logs(x), high))


def mean_error(estimated: Sequence[float], published: Sequence[float]) -> float:
    """Mean of |estimated / published - 1|."""
    return float(np.mean(np.abs(np.asarray(estimated) / np.asarray(published) - 1)))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Correlation of the ranks; no ties are expected among latencies."""
    a, b = (np.argsort(np.argsort(values)).astype(float) for values in (first, second))
    return float(np.corrcoef(a, b)[0, 1])


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Pairs in the same order minus pairs in the other, over all pairs."""
    score, pairs = 0.0, 0
    for i in range(len(first)):
        for j in range(i):
            score += math.copysign(1, (first[i] - first[j]) * (second[i] - second[j]))
            pairs += 1
    return score / pairs if pairs else 1.0


def _with(start: Parameters, names: Sequence[str], x: np.ndarray) -> Parameters:
    changes: Mapping[str, float] = dict(zip(names, np.exp(x).tolist(), strict=True))
    return start.but(**changes)


def _mape(logs: np.ndarray) -> float:
    return float(np.mean(np.abs(np.exp(logs) - 1)))


def _loss(errors: np.ndarray, x: np.ndarray, origin: np.ndarray) -> float:
    return float(np.sum(errors**2) + _PULL**2 * np.sum((x - origin) ** 2))


def _slope(
    errors: Callable[[np.ndarray], np.ndarray], x: np.ndarray, at: np.ndarray, high: np.ndarray
) -> np.ndarray:
    columns = []
    for number in range(len(x)):
        moved = x.copy()
        moved[number] += _STEP if x[number] + _STEP <= high[number] else -_STEP
        columns.append((errors(moved) - at) / (moved[number] - x[number]))
    return np.stack(columns, axis=1)


def _step(
    slope: np.ndarray, at: np.ndarray, x: np.ndarray, origin: np.ndarray, low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Least squares, again without those numbers that it would push out of their ranges."""
    free = np.ones(len(x), dtype=bool)
    step = np.zeros(len(x))
    for _ in range(len(x)):
        pull = _PULL * np.eye(len(x))[free]
        matrix = np.concatenate([slope[:, free], pull[:, free]])
        fixed = slope[:, ~free] @ step[~free]
        right = np.concatenate([-(at + fixed), -_PULL * (x - origin)[free]])
        step[free] = np.linalg.lstsq(matrix, right, rcond=None)[0]
        out = free & ((x + step > high + 1e-9) | (x + step < low - 1e-9))
        if not out.any():
            break
        step[out] = np.clip(x + step, low, high)[out] - x[out]
        free &= ~out
        if not free.any():
            break
    return step


def _shown(names: Sequence[str], x: np.ndarray) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, np.exp(x), strict=True))
