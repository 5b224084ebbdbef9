# SPDX-License-Identifier: Apache-2.0
"""Operators that are spelled out for TVM's importer, which drops or rounds a number of theirs.

add(x, y, alpha=a), sub(x, y, alpha=a)  ->  add(x, a y), sub(x, a y)
x < 2.5, x >= 2.5 for integers          ->  x < 3, x >= 3
x > 2.5, x <= 2.5 for integers          ->  x > 2, x <= 2
x == 2.5, x != 2.5 for integers         ->  false, true
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
    table[aten.eq.Scalar] = _of_integers(lambda x, _: torch.zeros_like(x, dtype=torch.bool))
    table[aten.ne.Scalar] = _of_integers(lambda x, _: torch.ones_like(x, dtype=torch.bool))
    return table


def _with_alpha(operator: Callable[..., Any]) -> Callable[..., Any]:
    def scaled(x: Any, y: Any, alpha: Any = 1) -> Any:
        return NotImplemented if alpha == 1 else operator(x, y * alpha)

    return scaled


def _rounded(operator: Callable[..., Any], whole: Callable[[float], int]) -> Callable[..., Any]:
    return _of_integers(lambda x, y: operator(x, whole(y)))


def _of_integers(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compared(x: Any, y: Any) -> Any:
        plain = x.is_floating_point() or not math.isfinite(y) or float(y).is_integer()
        return NotImplemented if plain else compare(x, y)

    return compared
