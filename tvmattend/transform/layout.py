# SPDX-License-Identifier: Apache-2.0
"""Choose the layout of each convolution: pixels (NCHW) or channels (NHWC) in the vectors.

    cost(conv, layout) = MACs / share of lanes that compute an output
    cost(change)       = elements that are moved

The cheapest assignment along the network, found as a shortest path over two states. Large maps with
8 to 21 channels a column want pixels, small maps with hundreds of channels want channels; a change
of layout between two convolutions is paid once, so isolated changes do not happen. The convolutions
of a block that will be one kernel have one layout, so that changes fall on the edges of blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedules import conv2d_channels, conv2d_pixels
from schedules.machines import Machine
from tvmattend.transform.dataflow import Dataflow, op_name
from tvmattend.transform.pieces import POOLS

PIXELS, CHANNELS = "NCHW", "NHWC"


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
    stride: int
    groups: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        taps = self.kernel[0] * self.kernel[1] * (self.channels // self.groups)
        return self.batch * self.features * self.out_height * self.out_width * taps


def conv_shape(call: Any) -> ConvShape:
    """Read the sizes of a `relax.nn.conv2d` in NCHW/OIHW."""
    batch, channels, height, width = (int(extent) for extent in call.args[0].ty.shape)
    _, features, out_height, out_width = (int(extent) for extent in call.ty.shape)
    kernel = tuple(int(extent) for extent in call.args[1].ty.shape)[2:]
    return ConvShape(
        batch,
        channels,
        height,
        width,
        features,
        out_height,
        out_width,
        (kernel[0], kernel[1]),
        int(call.attrs.strides[1]),
        int(call.attrs.groups),
    )


def utilisation(conv: ConvShape, layout: str, machine: Machine) -> float:
    """Share of the lanes that compute an output."""
    if layout == CHANNELS:
        per_group = conv.features // conv.groups
        outer = conv2d_channels.feature_blocks(per_group, machine.lanes)
        return per_group / (outer * machine.lanes)
    slab = conv2d_pixels.choose_slab(
        conv.out_height,
        conv.out_width,
        conv.kernel[1],
        conv.stride,
        conv.channels // conv.groups,
        conv.features // conv.groups,
        machine,
    )
    return 1.0 - slab.waste(conv.out_width, machine.lanes)


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
        """Multiply-accumulates, weighted with the lanes that are wasted."""
        return sum(conv.macs / utilisation(conv, layout, machine) for conv in self.convs)


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
        # A transposed element costs about four vector operations, scalar loads being its bound.
        change = 4.0 * region.entering
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
