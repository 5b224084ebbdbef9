# SPDX-License-Identifier: Apache-2.0
"""Architectures as frozen data: what a network is, without torch.

Sources: Wong et al., arXiv 2208.06980 (AttendNeXt, the double-condensing attention condenser),
arXiv 2008.04245 (the classical attention condenser), arXiv 2311.11656 (the layer-exact widths).
"""

from dataclasses import dataclass
from typing import Literal, get_args

Condense = Literal["avg", "max"]
Gate = Literal["softmax", "sigmoid"]
Expand = Literal["channel", "nearest"]
Kind = Literal["basic", "bottleneck"]


@dataclass(frozen=True)
class Condenser:
    """One flavour of the attention condenser; the default is the double-condensing one.

    With input V, `condense` a 2x2 pooling, F and P convolutions with and without groups:

        expand="channel"   A = F(act(F(condense(V))))             both branches condensed
        expand="nearest"   A = P(upsample(act(P(act(F(condense(C)))))))   C: V, or condense(V)
        B = P(C)
        out = act(gate(A) * B [* S] [+ B])

    Attributes:
        condense: The pooling of both branches.
        gate: Softmax over the channels, or a sigmoid an element.
        expand: Whether the embedding grows back in channels only (the feature branch is
            condensed too), or in space by nearest-neighbour upsampling.
        scale: Multiply the gated features by a learned scalar S.
        residual: Add the ungated features.
    """

    condense: Condense = "avg"
    gate: Gate = "softmax"
    expand: Expand = "channel"
    scale: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        for value, choices in (
            (self.condense, get_args(Condense)),
            (self.gate, get_args(Gate)),
            (self.expand, get_args(Expand)),
        ):
            if value not in choices:
                raise ValueError(f"a condenser has no `{value}`; choose from {', '.join(choices)}")


DOUBLE_CONDENSING = Condenser()
CLASSICAL = Condenser("max", "sigmoid", "nearest", scale=True, residual=True)


@dataclass(frozen=True)
class Stage:
    """A run of blocks at one resolution: the attention condenser, then residual blocks.

    Attributes:
        kind: `basic` has two grouped convolutions in the attention branch; `bottleneck` has one
            between two pointwise ones.
        width: Channels of the grouped convolutions, all columns together.
        channels: Channels that leave the stage.
        blocks: Number of blocks, the condenser included.
        downsample: Whether the stage halves the resolution.
    """

    kind: Kind
    width: int
    channels: int
    blocks: int
    downsample: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"a stage has no kind `{self.kind}`")
        if self.kind == "basic" and self.width != self.channels:
            raise ValueError(f"a basic stage is as wide as its output, not {self.width}")
        if self.blocks < 1:
            raise ValueError(f"a stage has at least one block, not {self.blocks}")


@dataclass(frozen=True)
class Architecture:
    """A whole network.

    Attributes:
        name: The registry's name.
        note: One short line for a person.
        stem: Channels of the stem.
        stages: From high to low resolution.
        input_size: Height and width of the input in pixels.
        classes: Classes of the head.
        columns: Independent columns, the groups of the grouped convolutions.
        condenser: The flavour of the first block of every stage.
    """

    name: str
    note: str
    stem: int
    stages: tuple[Stage, ...]
    input_size: int = 224
    classes: int = 1000
    columns: int = 4
    condenser: Condenser = DOUBLE_CONDENSING

    def __post_init__(self) -> None:
        incoming = (self.stem, *(stage.channels for stage in self.stages))
        for channels, stage in zip(incoming, self.stages, strict=False):
            grouped = (stage.width, channels) if stage.kind == "basic" else (stage.width,)
            if any(count % self.columns for count in (self.stem, *grouped)):
                raise ValueError(
                    f"{self.name}: {grouped} do not divide into {self.columns} columns"
                )
