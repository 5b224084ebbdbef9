# SPDX-License-Identifier: Apache-2.0
"""ONNX's own reference, with the operators that it computes wrongly put right.

LRN(x)             =  x / (bias + alpha / size * sum of x^2 over the window of channels)^beta
Softmax(x, axis)   =  over all axes from `axis` on together, before opset 13; likewise LogSoftmax
"""

import traceback
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

# The first opset in which Softmax and LogSoftmax are over one axis.
_ONE_AXIS = 13


class LRN(OpRun):  # type: ignore[misc]  # noqa: D101  (its name is the operator's)
    def _run(self, x: Any, alpha: float, beta: float, bias: float, size: int) -> tuple[Any]:
        before = (size - 1) // 2
        channels = x.shape[1]
        squares = np.square(x)
        sums = [
            squares[:, max(0, channel - before) : channel + size - before].sum(axis=1)
            for channel in range(channels)
        ]
        scale = bias + alpha / size * np.stack(sums, axis=1)
        return ((x / scale**beta).astype(x.dtype),)


class LogSoftmax(OpRun):  # type: ignore[misc]  # noqa: D101
    def _run(self, x: Any, axis: int) -> tuple[Any]:
        # What is not given comes from the schema of today, whose default is another.
        given = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)
        axes = tuple(range(axis % x.ndim if given else 1, x.ndim))
        shifted = x - x.max(axis=axes, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True)),)


class Softmax(LogSoftmax):  # noqa: D101
    def _run(self, x: Any, axis: int) -> tuple[Any]:
        return (np.exp(super()._run(x, axis)[0]),)


def evaluator(model: Any, opset: int) -> ReferenceEvaluator:
    """Make what runs a model with NumPy."""
    replaced = [LRN, LogSoftmax, Softmax] if opset < _ONE_AXIS else [LRN]
    return ReferenceEvaluator(model, new_ops=replaced)


def failed_operator(error: BaseException) -> str:
    """Name the operator that ONNX's reference failed in; empty if an input may be at fault.

    An index beyond its table is the input's.
    """
    if isinstance(error, LookupError):
        return ""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        operator = frame.f_locals.get("self")
        if isinstance(operator, OpRun):
            found = str(operator.onnx_node.op_type)
    return found
