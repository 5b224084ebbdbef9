# SPDX-License-Identifier: Apache-2.0
"""Operators that are spelled out for TVM's importer, which drops or rounds a number of theirs.

add(x, y, alpha=a), sub(x, y, alpha=a)  ->  add(x, a y), sub(x, a y)
x < 2.5, x >= 2.5 for integers          ->  x < 3, x >= 3
x > 2.5, x <= 2.5 for integers          ->  x > 2, x <= 2
x == 2.5, x != 2.5 for integers         ->  false, true
b < c, b == c, ... for booleans         ->  int(b) < int(c), int(b) == int(c), ...
b + c, b * c for booleans               ->  b or c, b and c; maximum and minimum likewise
"""

import math
from collections.abc import Callable
from typing import Any

import torch


def decompositions() -> Any:
    """Give PyTorch's own table, and ours in it, for `ExportedProgram.run_decompositions`."""
    table = torch.export.default_decompositions()
    aten = torch.ops.aten
    for operator in (aten.add, aten.sub):
        for overload in (operator.Tensor, operator.Scalar):
            table[overload] = _with_alpha(operator)
    for operator, whole in (
        (aten.lt, math.ceil),
        (aten.ge, math.ceil),
        (aten.gt, math.floor),
        (aten.le, math.floor),
    ):
        table[operator.Scalar] = _rounded(operator, whole)
    table[aten.eq.Scalar] = _of_integers(
        aten.eq, lambda x, _: torch.zeros_like(x, dtype=torch.bool)
    )
    table[aten.ne.Scalar] = _of_integers(aten.ne, lambda x, _: torch.ones_like(x, dtype=torch.bool))
    for operator in (aten.lt, aten.ge, aten.gt, aten.le, aten.eq, aten.ne):
        table[operator.Tensor] = _of_booleans(lambda x, y, op=operator: op(x.int(), y.int()))
    table[aten.add.Tensor] = _of_booleans(aten.logical_or, table[aten.add.Tensor])
    table[aten.mul.Tensor] = _of_booleans(aten.logical_and)
    table[aten.maximum.default] = _of_booleans(aten.logical_or)
    table[aten.minimum.default] = _of_booleans(aten.logical_and)
    return table


def _with_alpha(operator: Callable[..., Any]) -> Callable[..., Any]:
    def scaled(x: Any, y: Any, alpha: Any = 1) -> Any:
        return NotImplemented if alpha == 1 else operator(x, y * alpha)

    return scaled


def _rounded(operator: Callable[..., Any], whole: Callable[[float], int]) -> Callable[..., Any]:
    return _of_integers(operator, lambda x, y: operator(x, whole(y)))


def _of_integers(
    operator: Callable[..., Any], compare: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
    def compared(x: Any, y: Any) -> Any:
        if x.dtype == torch.bool:
            return operator(x.int(), y)
        plain = x.is_floating_point() or not math.isfinite(y) or float(y).is_integer()
        return NotImplemented if plain else compare(x, y)

    return compared


def _of_booleans(
    compute: Callable[..., Any], otherwise: Callable[..., Any] = lambda *_, **__: NotImplemented
) -> Callable[..., Any]:
    def computed(x: Any, y: Any, **options: Any) -> Any:
        both = all(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in (x, y))
        return compute(x, y) if both else otherwise(x, y, **options)

    return computed
