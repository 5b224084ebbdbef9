# SPDX-License-Identifier: Apache-2.0
"""Operators that are spelled out for TVM's importer, which drops or rounds a number of theirs.

add(x, y, alpha=a), sub(x, y, alpha=a)  ->  add(x, a y), sub(x, a y)
x < 2.5, x >= 2.5 for integers          ->  x < 3, x >= 3
x > 2.5, x <= 2.5 for integers          ->  x > 2, x <= 2
x == 2.5, x != 2.5 for integers         ->  false, true
b < c, b == c, ... for booleans         ->  int(b) < int(c), int(b) == int(c), ...
b + c, b * c for booleans               ->  b or c, b and c; maximum and minimum likewise
n + 0.5, clamp(n, 0.5), n / m, ...      ->  float(n) + 0.5, ..., for integers and booleans
where(c, x, n)                          ->  where(c, x, float(n))
var_mean(x)                             ->  var(x), mean(x)
_assert_async(c)                        ->  nothing: it changes no number
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
        table[operator.Scalar] = _with_alpha(operator)
        table[operator.Tensor] = _in_floats(operator.Tensor, _with_alpha(operator))
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
    for overload in (aten.clamp.default, aten.pow.Tensor_Scalar, aten.remainder.Scalar):
        table[overload] = _in_floats(overload)
    for overload in (aten.div.Tensor, aten.reciprocal.default):
        table[overload] = _in_floats(overload, always=True)
    table[aten.add.Tensor] = _of_booleans(aten.logical_or, table[aten.add.Tensor])
    table[aten.mul.Tensor] = _of_booleans(aten.logical_and, _in_floats(aten.mul.Tensor))
    table[aten.maximum.default] = _of_booleans(aten.logical_or)
    table[aten.minimum.default] = _of_booleans(aten.logical_and)
    table[aten.where.self] = _where
    table[aten.var_mean.correction] = _var_mean
    table[aten._assert_async.msg] = lambda *_: None  # noqa: SLF001  (PyTorch's own name)
    return table


def _as_it_is(*_: Any, **__: Any) -> Any:
    return NotImplemented


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
    compute: Callable[..., Any], otherwise: Callable[..., Any] = _as_it_is
) -> Callable[..., Any]:
    def computed(x: Any, y: Any, **options: Any) -> Any:
        both = all(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in (x, y))
        return compute(x, y) if both else otherwise(x, y, **options)

    return computed


def _in_floats(
    operator: Callable[..., Any],
    otherwise: Callable[..., Any] = _as_it_is,
    always: bool = False,
) -> Callable[..., Any]:
    """Make floats of integers and booleans, and compute with those, beside a float or `always`."""

    def computed(*parts: Any, **options: Any) -> Any:
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        if any(part.is_floating_point() for part in tensors) or not (
            always or any(isinstance(part, float) for part in (*parts, *options.values()))
        ):
            return otherwise(*parts, **options)
        kind = torch.get_default_dtype()
        floats = (part.to(kind) if isinstance(part, torch.Tensor) else part for part in parts)
        return operator(*floats, **options)

    return computed


def _where(condition: Any, x: Any, y: Any) -> Any:
    kind = torch.result_type(x, y)
    if x.dtype == y.dtype:
        return NotImplemented
    return torch.where(condition, x.to(kind), y.to(kind))


def _var_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    variance = torch.var(x, dim, correction=correction, keepdim=keepdim)
    return variance, torch.mean(x, dim, keepdim)
