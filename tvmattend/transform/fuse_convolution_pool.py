# SPDX-License-Identifier: Apache-2.0
"""Fuse a pooling into the convolution that feeds it.

    y = pool(act(conv(x)))                   ->  y = conv_pool(x, weights)
    y = pool(act(embed(act(expand(x)))))     ->  y = conv_pool(x, weights)    (a whole stem)

The maps before the pooling, the largest of the network in a stem, are never written as a whole.
Overlapping windows make neighbouring tiles compute their common rows twice.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tvmattend.expressions import is_constant, op_name
from tvmattend.transform import pieces
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.rule import FusionRule, Match, Variant


class FuseConvolutionPool(FusionRule):
    """The rule; see the equation at the head of this file.

    Args:
        stem: Take a second convolution before the first too, if it has an activation.
    """

    name = "tvmattend.convolution_pool"
    kernel = "conv_pool"

    def __init__(self, *, stem: bool = True) -> None:
        self._stem = stem

    def candidates(self, flow: Dataflow) -> Iterator[Any]:
        """Every pooling of a convolution's output."""
        for variable, call in flow.calls(*pieces.POOLS):
            value = flow.value(call.args[0])
            while op_name(value) in pieces.ACTIVATIONS or (
                op_name(value) == pieces.ADD and is_constant(value.args[1])
            ):
                value = flow.value(value.args[0])
            if op_name(value) == pieces.CONV:
                yield variable

    def variants(self) -> Sequence[Variant]:
        """The whole stem if it is asked for, else the last convolution."""
        from tvm.relax.dpl import wildcard

        variants = []
        for stem in (True, False) if self._stem else (False,):
            parts: dict[str, Any] = {"input": wildcard()}
            x = parts["input"]
            if stem:
                x = pieces.one_of(pieces.ACTIVATIONS, pieces.convolution(x, parts, "expand"))
            conv = pieces.convolution(x, parts, "embed")
            root = pieces.pool(pieces.optional(pieces.ACTIVATIONS, conv), parts, "pool")
            variants.append(Variant("stem" if stem else "single", root, parts))
        return variants

    def check(self, match: Match) -> str:
        """All in one layout, and convolutions that have kernels of ours."""
        convs, pool = match.named("expand", "embed"), match.parts["pool"]
        if any(str(conv.attrs.data_layout) != str(pool.attrs.layout) for conv in convs):
            return "the layout changes between convolution and pooling"
        # Before a second convolution the rows that neighbouring tiles compute twice add up: a stem
        # of three input channels can afford it.
        if len(convs) > 1 and pieces.channels(convs[0])[0] > 4:
            return "the first convolution is no stem's: it reads more than four channels"
        faults = (pieces.unsupported(conv, strided=True) for conv in convs)
        return next((fault for fault in faults if fault), "")

    def explain(self, flow: Dataflow, candidate: Any) -> str:
        """There is one way to get here."""
        del flow, candidate
        return "there is more between convolution and pooling than a bias and an activation"
