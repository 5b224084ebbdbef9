# SPDX-License-Identifier: Apache-2.0
"""Fuse the head of a network: global average pooling into the linear layer that reads it.

    y = mean(x over pixels) w + b      ->  y = head(x, w, b)

The pooled vector is a few kilobytes; a launch of its own costs more than to compute it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tvmattend.expressions import is_constant, op_name, static_shape
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.rule import FusionRule, Match, Variant

_MEAN, _LINEAR = "relax.mean", "relax.matmul"
_FLATTEN = ("relax.reshape", "relax.squeeze")


class FuseGlobalPoolLinear(FusionRule):
    """The rule; see the equation at the head of this file."""

    name = "tvmattend.global_pool_linear"
    kernel = "head"

    def candidates(self, flow: Dataflow) -> Iterator[Any]:
        """Every linear layer whose input comes from a mean."""
        for variable, call in flow.calls(_LINEAR):
            value = flow.value(call.args[0])
            if op_name(value) in _FLATTEN:
                value = flow.value(value.args[0])
            if op_name(value) == _MEAN:
                yield variable

    def roots(self, flow: Dataflow, candidate: Any) -> Sequence[Any]:
        """The bias behind the linear layer, if there is one."""
        readers = flow.readers(candidate)
        if len(readers) == 1:
            call = flow.value(readers[0])
            if op_name(call) == "relax.add" and is_constant(call.args[1]):
                return [readers[0], candidate]
        return [candidate]

    def variants(self) -> Sequence[Variant]:
        """A mean that keeps its axes is flattened between."""
        from tvm.relax.dpl import is_const, is_op, wildcard

        variants = []
        for flatten in (None, *_FLATTEN):
            parts: dict[str, Any] = {"input": wildcard()}
            parts["mean"] = pooled = is_op(_MEAN)(parts["input"])
            if flatten == "relax.reshape":
                pooled = is_op(flatten)(pooled, wildcard())
            elif flatten is not None:
                pooled = is_op(flatten)(pooled)
            parts["linear"] = linear = is_op(_LINEAR)(pooled, wildcard())
            name = "direct" if flatten is None else flatten.rpartition(".")[2]
            root = is_op("relax.add")(linear, is_const()) | linear
            variants.append(Variant(name, root, parts))
        return variants

    def check(self, match: Match) -> str:
        """A mean over the pixels of a map, and constant weights."""
        mean, linear = match.parts["mean"], match.parts["linear"]
        shape = static_shape(mean.args[0]) or ()
        axes = [] if mean.attrs.axis is None else [int(axis) for axis in mean.attrs.axis]
        if len(shape) != 4 or axes not in ([1, 2], [2, 3]):
            return f"the mean is over axes {axes} of {len(shape)}, not over the pixels of a map"
        if not is_constant(linear.args[1]):
            return "the weights are no constants"
        return ""
