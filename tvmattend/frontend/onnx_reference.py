# SPDX-License-Identifier: Apache-2.0
"""ONNX's own reference, with the operators that it computes wrongly put right.

LRN(x)             =  x / (bias + alpha / size * sum of x^2 over the window of channels)^beta
Softmax(x, axis)   =  over all axes from `axis` on together, before opset 13; likewise LogSoftmax
MaxPool(x)         =  max of x over each window, without padding
AveragePool(x)     =  sum of x over each window / (its numbers + its padding if that counts)
LpPool(x, p)       =  (AveragePool(|x|^p) * size of the window)^(1/p), as PyTorch's lp_pool

ceil_mode adds a last window that reaches beyond the padding, which never counts there, unless it
would start in the padding at the end. ONNX says so from opset 22 on; PyTorch exports and computes
it so in all, where the window would hold no number.
"""

import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
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


class MaxPool(OpRun):  # type: ignore[misc]  # noqa: D101
    def _run(self, x: Any, **attributes: Any) -> tuple[Any]:
        least = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
        return (_windows(x, least, least, attributes).max(axis=_taps(x)),)


class AveragePool(OpRun):  # type: ignore[misc]  # noqa: D101
    def _run(self, x: Any, **attributes: Any) -> tuple[Any]:
        ones = np.ones_like(x[:1, :1])
        counted = attributes["count_include_pad"]
        counts = _windows(ones, counted, 0, attributes).sum(axis=_taps(x))
        return (_windows(x, 0, 0, attributes).sum(axis=_taps(x)) / counts,)


class LpPool(AveragePool):  # noqa: D101
    def _run(self, x: Any, **attributes: Any) -> tuple[Any]:
        p, size = attributes["p"], math.prod(attributes["kernel_shape"])
        (means,) = super()._run(np.abs(x) ** p, **attributes, count_include_pad=1)
        return ((means * size) ** (1 / p),)


class PoolAxis(NamedTuple):
    """The windows of a pool along one axis.

    Attributes:
        windows: Their number.
        stride: From one to the next.
        dilation: From one tap to the next.
        reach: From the first tap of a window to behind its last.
        before: Padding ahead of the numbers.
        after: Padding behind them.
    """

    windows: int
    stride: int
    dilation: int
    reach: int
    before: int
    after: int


def pool_axes(extents: Sequence[int], attributes: Mapping[str, Any]) -> list[PoolAxis]:
    """Give the windows of a pool with a node's attributes, None or absent if not given."""
    pads = attributes.get("pads") or [0] * 2 * len(extents)
    ones = [1] * len(extents)
    strides, dilations = (attributes.get(name) or ones for name in ("strides", "dilations"))
    mode, ceil = attributes.get("auto_pad") or "NOTSET", attributes.get("ceil_mode")
    axes = []
    for place, (extent, taps) in enumerate(zip(extents, attributes["kernel_shape"], strict=True)):
        stride, dilation = strides[place], dilations[place]
        reach = (taps - 1) * dilation + 1
        if mode.startswith("SAME"):
            windows = -(-extent // stride)
            total = max((windows - 1) * stride + reach - extent, 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            after = total - before
        else:
            before, after = pads[place], pads[place + len(extents)]
            steps = extent + before + after - reach
            windows = (-(-steps // stride) if ceil else steps // stride) + 1
            if ceil and (windows - 1) * stride >= extent + before:
                windows -= 1
        axes.append(PoolAxis(windows, stride, dilation, reach, before, after))
    return axes


def _windows(x: Any, padding: float, beyond: float, attributes: Mapping[str, Any]) -> Any:
    """View `x` as the windows of a pool along its pooled axes, and their taps along as many more.

    Args:
        x: Batch, channels, and the pooled axes.
        padding: What it is padded with.
        beyond: What a last window holds behind the padding.
        attributes: Of the pool.
    """
    axes = pool_axes(x.shape[2:], attributes)
    pads = [(axis.before, axis.after) for axis in axes]
    x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=padding)
    ends = [(axis.windows - 1) * axis.stride + axis.reach for axis in axes]
    more = [(0, max(0, end - extent)) for end, extent in zip(ends, x.shape[2:], strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *more], constant_values=beyond)
    windows: Any = sliding_window_view(x, [axis.reach for axis in axes], tuple(range(2, x.ndim)))
    chosen = [slice(0, axis.windows * axis.stride, axis.stride) for axis in axes]
    return windows[(..., *chosen, *(slice(None, None, axis.dilation) for axis in axes))]


def _taps(x: Any) -> tuple[int, ...]:
    return tuple(range(2 - x.ndim, 0))


def evaluator(model: Any, opset: int) -> ReferenceEvaluator:
    """Make what runs a model with NumPy."""
    replaced = [LRN, AveragePool, LpPool, MaxPool]
    replaced += [LogSoftmax, Softmax] if opset < _ONE_AXIS else []
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
