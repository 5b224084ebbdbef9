# SPDX-License-Identifier: Apache-2.0
"""Choose the layout of each convolution: pixels (NCHW) or channels (NHWC) in the vectors.

    cost(conv, layout) = MACs / share of lanes that compute an output
    cost(change)       = elements that are moved

The cheapest assignment along the network, found as a shortest path over two states. Large maps with
8 to 21 channels a column want pixels, small maps with hundreds of channels want channels; a change
of layout between two convolutions is paid once, so isolated changes do not happen.
"""

from dataclasses import dataclass
from typing import Any

from schedules import conv2d_channels, conv2d_pixels
from schedules.machines import Machine

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
        machine,
    )
    return 1.0 - slab.waste(conv.out_width, machine.lanes)


def choose_layouts(convs: list[ConvShape], machine: Machine) -> list[str]:
    """One layout a convolution, in the order of the network.

    Args:
        convs: The convolutions, first to last.
        machine: Lanes and registers of the core.
    """
    layouts = (PIXELS, CHANNELS)
    # The network's input and the importer's graph are NCHW.
    paths: dict[str, tuple[float, list[str]]] = {PIXELS: (0.0, [])}
    for conv in convs:
        # A transposed element costs about four vector operations, scalar loads being its bound.
        change = 4.0 * conv.batch * conv.channels * conv.height * conv.width
        step: dict[str, tuple[float, list[str]]] = {}
        for layout in layouts:
            own = conv.macs / utilisation(conv, layout, machine)
            options = [
                (cost + own + (change if before != layout else 0.0), [*path, layout])
                for before, (cost, path) in paths.items()
            ]
            step[layout] = min(options, key=lambda option: option[0])
        paths = step
    return min(paths.values(), key=lambda option: option[0])[1]


def assign_layouts(mod: Any, machine: Machine) -> Any:
    """Run TVM's ConvertLayout with the layouts chosen above; weights stay OIHW.

    Args:
        mod: Canonical IRModule in NCHW.
        machine: Lanes and registers of the core.
    """
    from tvm import relax

    calls: list[Any] = []

    def collect(node: Any) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.nn.conv2d":
            calls.append(node)

    relax.analysis.post_order_visit(mod["main"], collect)
    layouts = choose_layouts([conv_shape(call) for call in calls], machine)
    if CHANNELS not in layouts:
        return mod
    chosen = {call.__hash__(): layout for call, layout in zip(calls, layouts, strict=True)}

    def desired(call: Any) -> dict[str, list[str]]:
        layout = chosen.get(call.__hash__(), PIXELS)
        return {"relax.nn.conv2d": [layout, "OIHW"]}

    return relax.transform.ConvertLayout({}, desired)(mod)
