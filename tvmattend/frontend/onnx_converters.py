# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that TVM's importer makes kernels of, as operators of Relax; and their limits.

Clip(x, low, high)            ->  clip(x, low, high)
Pad(x, pads, value, axes)     ->  nn.pad(x, pads)
Tile(x, repeats)              ->  tile(x, repeats)
Conv(auto_pad=SAME_*)         ->  Conv(pads=...), and pools
"""

import math
from collections.abc import Callable
from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import get_constant

from tvmattend.expressions import constant

# ONNX's name of a mode -> TVM's.
_PADDING = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


class Node:
    """What a converter sees of a node.

    Args:
        inputs: Relax expressions; None for those left out.
        attributes: By name, as ONNX stores them.
        constants: Where TVM's importer keeps the initializers.
    """

    def __init__(self, inputs: Any, attributes: Any, constants: Any) -> None:
        self.inputs = inputs
        self.attributes = attributes
        self._constants = constants

    def value(self, place: int, name: str) -> Any:
        """Give input `place` as an array, None if it is left out.

        Raises:
            ValueError: It is computed.
        """
        given = self.inputs[place]
        found = None if given is None else constant(get_constant(given, self._constants))
        if found is None and given is not None:
            raise ValueError(f"`{name}` is computed, not a constant")
        return found

    def text(self, name: str, default: str) -> str:
        """Give an attribute that is a word."""
        return str(self.attributes.get(name, default.encode()).decode())


def _clip(node: Node) -> Any:
    x = node.inputs[0]
    kind = str(x.ty.dtype.dtype)
    bounds = [
        node.attributes.get(name) if found is None else found.item()
        for place, name in ((1, "min"), (2, "max"))
        for found in [node.value(place, name)]
    ]
    if "int" not in kind:
        low, high = (
            limit if bound is None or math.isnan(bound) else bound
            for bound, limit in zip(bounds, (-math.inf, math.inf), strict=True)
        )
        return relax.op.clip(x, min(low, high), high)
    for bound, choose in zip(bounds, (relax.op.maximum, relax.op.minimum), strict=True):
        x = x if bound is None else choose(x, relax.const(bound, kind))
    return x


def _pad(node: Node) -> Any:
    x = node.inputs[0]
    rank = len(x.ty.shape)
    pads, value, axes = (
        node.value(place, name) for place, name in ((1, "pads"), (2, "value"), (3, "axes"))
    )
    pads = [int(pad) for pad in (node.attributes["pads"] if pads is None else pads)]
    axes = range(rank) if axes is None else axes
    around = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        around[2 * (axis % rank)] = pads[place]
        around[2 * (axis % rank) + 1] = pads[place + len(axes)]
    mode = _PADDING[node.text("mode", "constant")]
    fill = float(node.attributes.get("value", 0) if value is None else value.item())
    return relax.op.nn.pad(x, around, mode, fill)


def _tile(node: Node) -> Any:
    return relax.op.tile(node.inputs[0], [int(count) for count in node.value(1, "repeats")])


CONVERTERS: dict[str, Callable[[Node], Any]] = {"Clip": _clip, "Pad": _pad, "Tile": _tile}


def _explicit_pads(node: Node) -> None:
    """Give a convolution or pool of `auto_pad` SAME_* the pads that this means, in place."""
    mode = node.text("auto_pad", "NOTSET")
    if not mode.startswith("SAME"):
        return
    extents = _shape(node.inputs[0])[2:]
    kernel = node.attributes.get("kernel_shape") or _shape(node.inputs[1])[2:]
    ones = [1] * len(extents)
    strides, dilations = (node.attributes.get(name, ones) for name in ("strides", "dilations"))
    totals = [
        max((math.ceil(extent / stride) - 1) * stride + (taps - 1) * dilation + 1 - extent, 0)
        for extent, taps, stride, dilation in zip(extents, kernel, strides, dilations, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    node.attributes["pads"] = less + more if mode == "SAME_UPPER" else more + less
    del node.attributes["auto_pad"]


def _check_resize(node: Node) -> None:
    """Refuse what TVM's converter of `Resize` leaves out, and leave out operands that are empty.

    Raises:
        ValueError: It, in words.
    """
    if node.attributes.get("antialias", 0):
        raise ValueError("`antialias` has no counterpart in Relax")
    coordinates = node.text("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES:
        raise ValueError(f"`coordinate_transformation_mode` is {coordinates}")
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        raise ValueError(f"`keep_aspect_ratio_policy` is {policy}")
    for place in (1, 2):  # `roi` and `scales`, which could not be left out before opset 13
        given = node.inputs[place]
        if given is not None and 0 in _shape(given):
            node.inputs[place] = None
    extents = _shape(node.inputs[0])
    if list(node.attributes.get("axes", range(len(extents)))) != list(range(len(extents))):
        raise ValueError("`axes` are not all axes in order")
    scales = node.value(2, "scales")
    for extent, scale in zip(extents, () if scales is None else scales, strict=False):
        # Steps of 1 / scale, as ONNX takes, are TVM's in / out only for whole results.
        # In double precision: 9 times the float32 below a third would be 3 in its own.
        if not (extent * float(scale)).is_integer():
            raise ValueError(f"{extent} pixels times {scale:g} are no whole number")


def _check_upsample(node: Node) -> None:
    """Refuse the form that TVM's converter of `Upsample` does not know.

    Raises:
        ValueError: The scales are an operand.
    """
    if "scales" not in node.attributes:
        raise ValueError("its scales are an input, as in opset 9; from opset 10 on it is `Resize`")


# What happens to a node before TVM's own converter sees it.
PREPARATIONS: dict[str, Callable[[Node], None]] = {
    **dict.fromkeys(("AveragePool", "Conv", "LpPool", "MaxPool"), _explicit_pads),
    "Resize": _check_resize,
    "Upsample": _check_upsample,
}


def _shape(expression: Any) -> list[int]:
    return [int(extent) for extent in expression.ty.shape]
