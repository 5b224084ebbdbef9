# SPDX-License-Identifier: Apache-2.0
"""Choose the layout of each convolution: pixels (NCHW) or channels (NHWC) in the vectors.

    cost(conv, layout) = vectors that are multiplied, of Winograd's points or of taps
                       + vectors that are transformed, weighted with what one costs
    cost(change)       = elements that are moved, weighted likewise

The cheapest assignment along the network, found as a shortest path over two states. Large maps with
8 to 32 channels a column want pixels, which Winograd transforms along one axis, not both; small
maps with hundreds of channels want channels. A change of layout between two convolutions is paid
once, so isolated changes do not happen. The convolutions of a block that will be one kernel have
one layout, so that changes fall on the edges of blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedules import conv2d_channels, conv2d_pixels, winograd, winograd_pixels, winograd_tiles
from schedules.machines import Machine
from tvmattend.expressions import op_name
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.pieces import POOLS

PIXELS, CHANNELS = "NCHW", "NHWC"

# Of `Machine.transform`: a transform in both axes, beside one along the rows; and one of columns
# that are no whole vectors, whose input jobs do not keep to themselves. Fitted to the 3x3
# convolutions of four networks, estimated on a Cortex-A72 (benchmarks/NOTES.md, "Fusion").
_TILES, _UNEVEN = 1.4, 1.75
# Of a vector that holds one feature, whose sums have nothing beside them to hide their latency: the
# depthwise convolutions of MobileNetV1, likewise.
_LONELY = 8.0
# Of `Machine.spill`: what a pointwise convolution of pixels waits, as a share of its products, if
# its slab fills the first-level cache, which its weights want too (likewise).
_CROWDED = 28.0


@dataclass(frozen=True)
class ConvShape:
    """What the choice needs to know of one convolution (NCHW sizes)."""

    batch: int
    channels: int
    height: int
    width: int
    features: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    groups: int


def conv_shape(call: Any) -> ConvShape:
    """Read the sizes of a `relax.nn.conv2d` in NCHW/OIHW."""
    batch, channels, height, width = (int(extent) for extent in call.args[0].ty.shape)
    _, features, out_height, out_width = (int(extent) for extent in call.ty.shape)
    kernel = tuple(int(extent) for extent in call.args[1].ty.shape)[2:]
    down, across = (int(step) for step in call.attrs.strides)
    top, left, bottom, right = (int(side) for side in call.attrs.padding)
    return ConvShape(
        batch,
        channels,
        height,
        width,
        features,
        out_height,
        out_width,
        (kernel[0], kernel[1]),
        (down, across),
        (top, left, bottom, right),
        int(call.attrs.groups),
    )


def vector_operations(conv: ConvShape, layout: str, machine: Machine) -> float:
    """What a convolution takes in a layout: multiply-adds of vectors, and as many for all else.

    Args:
        conv: Its sizes.
        layout: `PIXELS` or `CHANNELS`.
        machine: Lanes, caches, and what a transform costs.
    """
    column = (conv.channels // conv.groups, conv.features // conv.groups)
    suits = winograd.suits(*column, conv.kernel, conv.strides, conv.padding)
    cost = _of_pixels if layout == PIXELS else _of_channels
    return conv.batch * conv.groups * cost(conv, column, machine, suits=suits)


def _of_pixels(conv: ConvShape, column: tuple[int, int], machine: Machine, *, suits: bool) -> float:
    """Vector operations of one column of one image."""
    per_in, per_out = column
    if suits and winograd.cuts(conv.height):
        algorithm = winograd.algorithm(conv.height)
        slab = winograd_pixels.choose_slab(conv.height, conv.width, *column, conv.groups, machine)
        vectors = conv.height // algorithm.outputs // slab.rows * slab.vectors
        products = winograd.TAPS * per_in * per_out
        return vectors * algorithm.inputs * (products + machine.transform * (per_in + per_out))
    slab = conv2d_pixels.choose_slab(
        conv.out_height, conv.out_width, conv.kernel[1], conv.strides[1], *column, machine
    )
    vectors = conv.out_height // slab.rows * slab.vectors
    products = vectors * math.prod(conv.kernel) * per_in * per_out
    if conv.kernel != (1, 1):
        return products
    filled = 4 * per_in * slab.vectors * machine.lanes / machine.l1_bytes
    return products * (1 + _CROWDED * machine.spill * filled)


def _of_channels(
    conv: ConvShape, column: tuple[int, int], machine: Machine, *, suits: bool
) -> float:
    """Vector operations of one column of one image."""
    per_in, per_out = column
    outer = conv2d_channels.feature_blocks(per_out, machine.lanes)
    kernels = (conv.features, per_in, *conv.kernel)
    shape = (conv.batch, conv.height, conv.width, conv.channels)
    tiling = winograd_tiles.tiling_for(shape, kernels, conv.groups, machine) if suits else None
    if tiling is None:
        products = conv.out_height * conv.out_width * math.prod(conv.kernel) * per_in * outer
        return products * (_LONELY if per_out == 1 else 1.0)
    uneven = 1.0 if per_in % machine.lanes == 0 else _UNEVEN
    transforms = machine.transform * _TILES * uneven * (per_in / machine.lanes + outer)
    return tiling.points * math.prod(tiling.grid) * (per_in * outer + transforms)


@dataclass(frozen=True)
class Region:
    """Convolutions that must share a layout: those of one fused block, or a single one.

    Attributes:
        convs: Their sizes.
        entering: Elements that are moved if the layout changes at the region's edge.
    """

    convs: tuple[ConvShape, ...]
    entering: int

    def cost(self, layout: str, machine: Machine) -> float:
        """Vector operations of all of them."""
        return sum(vector_operations(conv, layout, machine) for conv in self.convs)


def choose_layouts(regions: Sequence[Region], machine: Machine) -> list[str]:
    """One layout a region, in the order of the network.

    Args:
        regions: First to last.
        machine: Lanes and registers of the core.
    """
    layouts = (PIXELS, CHANNELS)
    # The network's input and the importer's graph are NCHW.
    paths: dict[str, tuple[float, list[str]]] = {PIXELS: (0.0, [])}
    for region in regions:
        change = machine.turn * region.entering
        step: dict[str, tuple[float, list[str]]] = {}
        for layout in layouts:
            own = region.cost(layout, machine)
            options = [
                (cost + own + (change if before != layout else 0.0), [*path, layout])
                for before, (cost, path) in paths.items()
            ]
            step[layout] = min(options, key=lambda option: option[0])
        paths = step
    return min(paths.values(), key=lambda option: option[0])[1]


def assign_layouts(mod: Any, machine: Machine, blocks: Sequence[Sequence[Any]] = ()) -> Any:
    """Run TVM's ConvertLayout with the layouts chosen above; weights stay OIHW.

    Args:
        mod: Canonical IRModule in NCHW.
        machine: Lanes and registers of the core.
        blocks: Variables of `main` that will be one kernel, a sequence a block.
    """
    from tvm import relax

    flow = Dataflow(mod["main"])
    members = _regions(flow, blocks)
    regions = [
        Region(tuple(conv_shape(call) for call in calls), _entering(flow, calls))
        for calls in members
    ]
    layouts = choose_layouts(regions, machine)
    if CHANNELS not in layouts:
        return mod
    chosen = {
        call: layout for calls, layout in zip(members, layouts, strict=True) for call in calls
    }

    def desired(call: Any) -> dict[str, list[str]]:
        return {"relax.nn.conv2d": [chosen.get(call, PIXELS), "OIHW"]}

    return relax.transform.ConvertLayout({}, desired)(mod)


def _regions(flow: Dataflow, blocks: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The convolutions of each region; a region stands where its first convolution does."""
    owner = {variable: place for place, block in enumerate(blocks) for variable in block}
    regions: list[list[Any]] = []
    of_block: dict[int, list[Any]] = {}
    for variable, call in flow.calls("relax.nn.conv2d"):
        place = owner.get(variable)
        if place is not None and place in of_block:
            of_block[place].append(call)
            continue
        regions.append([call])
        if place is not None:
            of_block[place] = regions[-1]
    return regions


def _entering(flow: Dataflow, calls: Sequence[Any]) -> int:
    """Elements of what the region's convolutions read from outside of it, pools not counted."""
    inside = {flow.variable(call) for call in calls}
    first = next(call.args[0] for call in calls)
    if len(inside) > 1:
        while op_name(flow.value(first)) in POOLS:
            first = flow.value(first).args[0]
    return math.prod(int(extent) for extent in first.ty.shape)
