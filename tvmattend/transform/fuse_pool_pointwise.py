# SPDX-License-Identifier: Apache-2.0
"""Fuse a pooling into the pointwise convolution that reads it.

    y = act(conv1x1(pool(x), w) + b)      ->  y = pool_conv(x, w, b)

The pooled tile is a few rows of all channels, which the convolution reads while it is in cache.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tvmattend.expressions import is_constant, op_name
from tvmattend.transform import pieces
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.rule import FusionRule, Match, Variant


class FusePoolPointwise(FusionRule):
    """The rule; see the equation at the head of this file."""

    name = "tvmattend.pool_pointwise"
    kernel = "pool_conv"

    def candidates(self, flow: Dataflow) -> Iterator[Any]:
        """Every pointwise convolution of a pooled map."""
        for variable, conv in flow.calls(pieces.CONV):
            pooled = op_name(flow.value(conv.args[0])) in pieces.POOLS
            if pooled and len(conv.args[1].ty.shape) == 4 and pieces.kernel(conv) == (1, 1):
                yield variable

    def roots(self, flow: Dataflow, candidate: Any) -> Sequence[Any]:
        """The activation or bias behind the convolution, where nothing else reads between."""
        chain = [candidate]
        while len(readers := flow.readers(chain[-1])) == 1:
            call = flow.value(readers[0])
            bias = op_name(call) == pieces.ADD and is_constant(call.args[1])
            if not bias and op_name(call) not in pieces.ACTIVATIONS:
                break
            chain.append(readers[0])
            if not bias:
                break
        return chain[::-1]

    def variants(self) -> Sequence[Variant]:
        """With and without an activation."""
        from tvm.relax.dpl import wildcard

        parts: dict[str, Any] = {"input": wildcard()}
        pooled = pieces.pool(parts["input"], parts, "pool")
        conv = pieces.convolution(pooled, parts, "conv")
        return [Variant("pooled", pieces.optional(pieces.ACTIVATIONS, conv), parts)]

    def check(self, match: Match) -> str:
        """Both in one layout, and a convolution that has a kernel of ours."""
        conv, pool = match.parts["conv"], match.parts["pool"]
        if str(conv.attrs.data_layout) != str(pool.attrs.layout):
            return "the layout changes between pooling and convolution"
        return pieces.unsupported(conv)
