# SPDX-License-Identifier: Apache-2.0
"""AttendNeXt in PyTorch, built from an `Architecture`.

All tensors are float32, NCHW. The equations of the block stand in `architecture.Condenser`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tvmattend.models.architecture import Architecture, Condense, Condenser, Stage


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, and SiLU unless `act` is off."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, *, groups: int = 1, stride: int = 1,
        act: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels, H / stride, W / stride)."""
        y: Tensor = self.norm(self.conv(x))
        return functional.silu(y) if self.act else y


class Stem(nn.Module):
    """A strided convolution, a grouped one, and an anti-aliased (average pooling) halving."""

    def __init__(self, channels: int, columns: int) -> None:
        super().__init__()
        self.expand = ConvNorm(3, channels, 3, stride=2)
        self.embed = ConvNorm(channels, channels, 3, groups=columns)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, channels, H / 4, W / 4), both divisions rounding up."""
        return functional.avg_pool2d(self.embed(self.expand(x)), 3, 2, 1)


class Branch(nn.Module):
    """The attention branch of a condenser, or the whole of a residual block.

    Args:
        stage: Kind and widths.
        channels_in: Channels of the input.
        columns: Groups of the grouped convolutions.
        condense: The pooling that halves the resolution, or None.
        nearest: The pooling of the classical condenser, undone by nearest upsampling, or None.
    """

    def __init__(
        self, stage: Stage, channels_in: int, columns: int, condense: Condense | None = None,
        nearest: Condense | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        bottleneck = stage.kind == "bottleneck"
        width = stage.width
        self.condense, self.nearest = condense, nearest
        # In a bottleneck the pooling follows the reduction, in a basic branch it comes first.
        self.reduce = ConvNorm(channels_in, width, 1) if bottleneck else None
        channels = width if bottleneck else channels_in
        self.embed = ConvNorm(channels, width, 3, groups=columns)
        self.mix = ConvNorm(width, width, 1) if nearest else None
        if bottleneck or nearest:
            self.expand = ConvNorm(width, stage.channels, 1, act=False)
        else:
            self.expand = ConvNorm(width, stage.channels, 3, groups=columns, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, stage.channels, H', W'), H' = H // 2 if condensed."""
        if self.reduce is not None:
            x = self.reduce(x)
        if self.condense is not None:
            x = _pool(x, self.condense)
        if self.nearest is None or self.mix is None:
            key = self.embed(x)
        else:
            key = self.mix(self.embed(_pool(x, self.nearest)))
            key = functional.interpolate(key, size=x.shape[-2:], mode="nearest")
        y: Tensor = self.expand(key)
        return y


class AttentionCondenser(nn.Module):
    """The first block of a stage: features, selected by a condensed embedding of the input."""

    def __init__(self, stage: Stage, channels_in: int, columns: int, condenser: Condenser) -> None:
        super().__init__()
        self.condense = condenser.condense if stage.downsample else None
        self.gate, self.residual = condenser.gate, condenser.residual
        nearest = condenser.condense if condenser.expand == "nearest" else None
        self.attention = Branch(stage, channels_in, columns, self.condense, nearest)
        self.project = ConvNorm(channels_in, stage.channels, 1, act=False)
        self.scale = nn.Parameter(torch.ones(())) if condenser.scale else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, stage.channels, H', W')."""
        attention = self.attention(x)
        pooled = x if self.condense is None else _pool(x, self.condense)
        features: Tensor = self.project(pooled)
        gate = functional.softmax(attention, 1) if self.gate == "softmax" else attention.sigmoid()
        selected = gate * features
        if self.scale is not None:
            selected = selected * self.scale
        return functional.silu(selected + features if self.residual else selected)


class ResidualBlock(nn.Module):
    """A later block of a stage: act(branch(x) + x)."""

    def __init__(self, stage: Stage, columns: int) -> None:
        super().__init__()
        self.branch = Branch(stage, stage.channels, columns)

    def forward(self, x: Tensor) -> Tensor:
        """(N, stage.channels, H, W), unchanged in shape."""
        return functional.silu(self.branch(x) + x)


class AttendNeXt(nn.Module):
    """The network of an `Architecture`; `weights.seed_weights` gives it weights worth testing.

    Args:
        architecture: What to build.
        num_classes: Classes of the head; the architecture's own when None.
    """

    def __init__(self, architecture: Architecture, num_classes: int | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.input_shape = (1, 3, architecture.input_size, architecture.input_size)
        self.stem = Stem(architecture.stem, architecture.columns)
        self.stages = nn.Sequential()
        channels = architecture.stem
        for stage in architecture.stages:
            blocks: list[nn.Module] = [
                AttentionCondenser(stage, channels, architecture.columns, architecture.condenser)
            ]
            blocks += [ResidualBlock(stage, architecture.columns) for _ in range(1, stage.blocks)]
            self.stages.append(nn.Sequential(*blocks))
            channels = stage.channels
        self.head = nn.Linear(
            channels, architecture.classes if num_classes is None else num_classes
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), normalised RGB -> (N, classes) logits."""
        features = self.stages(self.stem(x))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def _pool(x: Tensor, condense: Condense) -> Tensor:
    return functional.avg_pool2d(x, 2) if condense == "avg" else functional.max_pool2d(x, 2)
