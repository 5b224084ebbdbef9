# SPDX-License-Identifier: Apache-2.0
"""Fold BatchNorm in inference into the convolution ahead of it.

    with s = gamma / sqrt(variance + epsilon):
    batch_norm(conv2d(x, W))      ->  conv2d(x, s W) + (beta - s mean)
    batch_norm(conv2d(x, W) + b)  ->  conv2d(x, s W) + (s (b - mean) + beta)
    batch_norm(x)                 ->  x s + (beta - s mean)        where no convolution is ahead

Left alone it becomes a chain of subtract, divide and multiply in every kernel. TVM's own pass
handles neither the bias nor the lone BatchNorm, and leaves the arithmetic to be compiled.
"""

from typing import Any

import numpy as np
from tvm import relax

from tvmattend.errors import ModelError
from tvmattend.expressions import constant, op_name
from tvmattend.frontend.rewriting import Scope


def fold_batch_norm(expression: Any, scope: Scope) -> Any:
    """Rule for `batch_norm(...)[0]`; see the module's equations.

    Raises:
        ModelError: A BatchNorm that uses the statistics of the batch, as in training, or computes
            its own.
    """
    if not isinstance(expression, relax.TupleGetItem) or expression.index != 0:
        return None
    variable = expression.tuple_value
    norm = scope.value(variable)
    if op_name(norm) != "relax.nn.batch_norm":
        return None
    statistics = [constant(argument) for argument in norm.args[1:5]]
    if norm.attrs["training"]:
        raise ModelError(
            "a BatchNorm uses the statistics of the batch, as in training",
            "call .eval() on the network before it is exported",
        )
    if any(part is None for part in statistics):
        raise ModelError(
            "the statistics or weights of a BatchNorm are computed by the network",
            "keep them as buffers and parameters, or spell out the arithmetic",
        )
    gamma, beta, mean, variance = (np.asarray(part, "float64") for part in statistics)
    scale = gamma / np.sqrt(variance + float(norm.attrs["epsilon"]))
    source, axis = norm.args[0], int(norm.attrs["axis"])
    folded = _into_convolution(source, scope, scale, beta, mean) if axis == 1 else None
    if folded is not None:
        return folded
    shape = [1] * len(source.ty.shape)
    shape[axis] = -1
    scaled = scope.emit(relax.op.multiply(source, _const(scale.reshape(shape))))
    return relax.op.add(scaled, _const((beta - scale * mean).reshape(shape)))


def _into_convolution(source: Any, scope: Scope, scale: Any, beta: Any, mean: Any) -> Any:
    value, bias = scope.value(source), np.zeros_like(scale)
    if not scope.used_once(source):
        return None
    if op_name(value) == "relax.add":
        addend = _channel_vector(value.args[1], len(scale))
        if addend is None:
            return None
        source, bias = value.args[0], addend
        value = scope.value(source)
        if not scope.used_once(source):
            return None
    weight = constant(value.args[1]) if op_name(value) == "relax.nn.conv2d" else None
    if weight is None or value.attrs["kernel_layout"] != "OIHW":
        return None
    folded = _const(weight * scale.reshape(-1, 1, 1, 1))
    convolution = relax.Call(value.op, [value.args[0], folded], value.attrs)
    result = scope.emit(convolution, scope.origin(source))
    return relax.op.add(result, _const((scale * (bias - mean) + beta).reshape(1, -1, 1, 1)))


def _channel_vector(expression: Any, channels: int) -> Any:
    """Give a bias of shape (1, C, 1, 1) or (C, 1, 1) as (C,), None for any other shape."""
    array = constant(expression)
    if array is None or array.shape not in {(1, channels, 1, 1), (channels, 1, 1)}:
        return None
    return array.reshape(-1).astype("float64")


def _const(array: Any) -> Any:
    return relax.const(np.ascontiguousarray(array, "float32"))
