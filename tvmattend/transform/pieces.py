# SPDX-License-Identifier: Apache-2.0
"""Patterns of the canonical module's building blocks, and checks of their attributes.

Dataflow patterns compare by identity: one pattern object that stands in two places of a pattern
demands one expression in both. Hence these are functions, which make a new pattern at each call.
"""

from collections.abc import Sequence
from typing import Any

from tvmattend.expressions import is_constant, op_name

CONV, ADD, MULTIPLY = "relax.nn.conv2d", "relax.add", "relax.multiply"
POOLS = ("relax.nn.avg_pool2d", "relax.nn.max_pool2d")
ACTIVATIONS = ("relax.nn.silu", "relax.nn.relu", "relax.nn.gelu", "relax.tanh")
GATES = ("relax.nn.softmax", "relax.sigmoid")
RESIZE, RESHAPE = "relax.image.resize2d", "relax.reshape"


def one_of(operators: Sequence[str], x: Any) -> Any:
    """A call of one of several operators on x alone."""
    from tvm.relax.dpl import is_op

    first, *others = (is_op(operator)(x) for operator in operators)
    for other in others:
        first |= other
    return first


def optional(operators: Sequence[str], x: Any) -> Any:
    """A call of one of several operators on x, or x itself."""
    return one_of(operators, x) | x


def convolution(x: Any, parts: dict[str, Any], name: str) -> Any:
    """conv2d(x, w) [+ constant bias]; the convolution goes into `parts` under `name`."""
    from tvm.relax.dpl import is_const, is_op, wildcard

    parts[name] = is_op(CONV)(x, wildcard())
    return is_op(ADD)(parts[name], is_const()) | parts[name]


def pool(x: Any, parts: dict[str, Any], name: str) -> Any:
    """Average or maximum pooling of x; it goes into `parts` under `name`."""
    parts[name] = one_of(POOLS, x)
    return parts[name]


def either_order(operator: str, left: Any, right: Any) -> Any:
    """A commutative operator on both, whichever stands first."""
    from tvm.relax.dpl import is_op

    return is_op(operator)(left, right) | is_op(operator)(right, left)


def pooling(call: Any) -> tuple[Any, ...]:
    """All that two poolings must share to be one, e.g. to serve both branches of a block."""
    attrs = call.attrs
    numbers = tuple(
        tuple(int(extent) for extent in attrs[key])
        for key in ("pool_size", "strides", "padding", "dilation")
    )
    # Whether padding counts is a matter of averages alone.
    counts = (
        bool(attrs.count_include_pad) if op_name(call) == POOLS[0] and any(numbers[2]) else None
    )
    return op_name(call), *numbers, bool(attrs.ceil_mode), counts


def not_apart(call: Any) -> str:
    """Why the windows of a pooling do not take a map apart; empty if they do."""
    _, size, strides, padding, dilation, *_ = pooling(call)
    if any(step != 1 for step in dilation):
        return "the condensing windows are dilated"
    if any(padding) or any(step < extent for step, extent in zip(strides, size, strict=True)):
        return "the condensing windows overlap or are padded"
    return "" if size == strides else "the condensing windows leave pixels out"


def groups(conv: Any) -> int:
    """Groups of a convolution."""
    return int(conv.attrs.groups)


def channels(conv: Any) -> tuple[int, int]:
    """Input and output channels of a convolution in any layout."""
    weight = conv.args[1].ty.shape
    return int(weight[1]) * groups(conv), int(weight[0])


def kernel(conv: Any) -> tuple[int, int]:
    """Height and width of a convolution's kernel."""
    weight = conv.args[1].ty.shape
    return int(weight[2]), int(weight[3])


def unsupported(conv: Any, *, strided: bool = False) -> str:
    """Why a convolution has no kernel of ours that computes it tile by tile; empty if it has.

    Args:
        conv: Call of `relax.nn.conv2d` with a static shape.
        strided: Whether a stride is allowed.
    """
    if not is_constant(conv.args[1]) or conv.attrs.kernel_layout != "OIHW":
        return "the weights are no constants"
    if any(int(step) != 1 for step in conv.attrs.dilation):
        return "a dilated convolution"
    if not strided and any(int(step) != 1 for step in conv.attrs.strides):
        return "a strided convolution"
    if groups(conv) > 1 and groups(conv) == channels(conv)[1]:
        return f"unsupported groups: {groups(conv)}, one channel a group leaves no vector to fill"
    return ""
