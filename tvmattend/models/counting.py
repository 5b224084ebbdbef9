# SPDX-License-Identifier: Apache-2.0
"""Layers, parameters and MACs of an architecture, computed from the data alone.

MACs are those of the convolutions and the linear layer, the convention of the published counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tvmattend.errors import ModelError
from tvmattend.models.architecture import Architecture, Stage


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        path: The module's path in the PyTorch network.
        channels_in: Channels read.
        channels: Channels written.
        kernel: Height and width of the kernel; 0 for the linear layer.
        groups: Groups of the convolution.
        size: Height and width of the output in pixels.
    """

    path: str
    channels_in: int
    channels: int
    kernel: int
    groups: int
    size: int

    @property
    def parameters(self) -> int:
        """Weights, and the two learned vectors of the BatchNorm (or the bias of the linear)."""
        if self.kernel == 0:
            return self.channels * (self.channels_in + 1)
        return self.channels * (self.channels_in // self.groups * self.kernel**2 + 2)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        taps = max(self.kernel, 1) ** 2
        return self.channels * self.channels_in // self.groups * taps * self.size**2


def layers(
    architecture: Architecture, classes: int | None = None, input_size: int | None = None
) -> tuple[Layer, ...]:
    """List the layers with weights, in the order of the network.

    Raises:
        ModelError: The input is so small that a stage would have no pixels.
    """
    size = architecture.input_size if input_size is None else input_size
    found: list[Layer] = []
    half = (size + 1) // 2  # 3x3, stride 2, padding 1
    found.append(Layer("stem.expand.conv", 3, architecture.stem, 3, 1, half))
    found.append(
        Layer(
            "stem.embed.conv", architecture.stem, architecture.stem, 3, architecture.columns, half
        )
    )
    channels, pixels = architecture.stem, (half + 1) // 2
    for index, stage in enumerate(architecture.stages):
        before = pixels
        pixels = pixels // 2 if stage.downsample else pixels
        smallest = pixels // 2 if architecture.condenser.expand == "nearest" else pixels
        if smallest < 1:
            raise ModelError(
                f"{architecture.name}: {size}x{size} pixels leave none for stage {index + 1}",
                f"give --input-size {minimal_input_size(architecture)} or more",
            )
        found += _stage_layers(architecture, index, channels, before, pixels)
        channels = stage.channels
    outputs = architecture.classes if classes is None else classes
    found.append(Layer("head", channels, outputs, 0, 1, 1))
    return tuple(found)


def parameters(architecture: Architecture, classes: int | None = None) -> int:
    """Count the learned parameters."""
    scales = len(architecture.stages) if architecture.condenser.scale else 0
    return sum(layer.parameters for layer in layers(architecture, classes)) + scales


def macs(
    architecture: Architecture, classes: int | None = None, input_size: int | None = None
) -> int:
    """Count the multiply-accumulates of one image."""
    return sum(layer.macs for layer in layers(architecture, classes, input_size))


def minimal_input_size(architecture: Architecture) -> int:
    """Give the smallest input, in pixels, that leaves at least one pixel everywhere."""
    pixels = 1 if architecture.condenser.expand == "channel" else 2
    for stage in reversed(architecture.stages):
        pixels *= 2 if stage.downsample else 1
    # The stem rounds up twice: 4k - 3 pixels give k.
    return 4 * pixels - 3


def _stage_layers(
    architecture: Architecture, index: int, channels: int, before: int, pixels: int
) -> Iterator[Layer]:
    stage = architecture.stages[index]
    for block in range(stage.blocks):
        path = f"stages.{index}.{block}"
        first = block == 0
        nearest = first and architecture.condenser.expand == "nearest"
        yield from _branch_layers(
            f"{path}.attention" if first else f"{path}.branch",
            stage,
            architecture.columns,
            channels if first else stage.channels,
            (before if first else pixels, pixels // 2 if nearest else pixels, pixels),
            nearest,
        )
        if first:
            yield Layer(f"{path}.project.conv", channels, stage.channels, 1, 1, pixels)


def _branch_layers(
    path: str, stage: Stage, columns: int, channels: int, sizes: tuple[int, int, int], mix: bool
) -> Iterator[Layer]:
    arriving, condensed, leaving = sizes
    bottleneck = stage.kind == "bottleneck"
    if bottleneck:
        yield Layer(f"{path}.reduce.conv", channels, stage.width, 1, 1, arriving)
        channels = stage.width
    yield Layer(f"{path}.embed.conv", channels, stage.width, 3, columns, condensed)
    if mix:
        yield Layer(f"{path}.mix.conv", stage.width, stage.width, 1, 1, condensed)
    pointwise = bottleneck or mix
    yield Layer(
        f"{path}.expand.conv",
        stage.width,
        stage.channels,
        1 if pointwise else 3,
        1 if pointwise else columns,
        leaving,
    )
