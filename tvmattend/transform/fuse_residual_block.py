# SPDX-License-Identifier: Apache-2.0
"""Fuse a plain block of columns, whole, into one kernel.

    y = act(expand(act(embed(x))) + x)               basic: 3x3 convolutions with groups
    y = act(expand(act(embed(act(reduce(x))))) + x)  bottleneck: 1x1, 3x3 with groups, 1x1
                                      ->  y = residual(x, weights)

A basic block's columns never exchange data, so one job may compute a whole column while it is in
cache. In a bottleneck every output channel depends on every column: the kernel keeps all channels
of a few rows. TVM's FuseOps makes a kernel of each convolution.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tvmattend.expressions import is_constant, op_name
from tvmattend.transform import pieces
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.rule import FusionRule, Match, Variant

_CONVS = ("reduce", "embed", "expand")


class FuseResidualBlock(FusionRule):
    """The rule; see the equation at the head of this file.

    Args:
        kinds: `basic`, `bottleneck`, or both: which of them are worth one kernel.
    """

    name = "tvmattend.residual_block"
    kernel = "residual"

    def __init__(self, kinds: Sequence[str] = ("basic", "bottleneck")) -> None:
        self._kinds = tuple(kinds)

    def candidates(self, flow: Dataflow) -> Iterator[Any]:
        """Every sum of a convolution's output and another map."""
        for variable, total in flow.calls(pieces.ADD):
            if any(is_constant(operand) for operand in total.args):
                continue
            if any(_ends_in_convolution(flow, operand) for operand in total.args):
                yield variable

    def roots(self, flow: Dataflow, candidate: Any) -> Sequence[Any]:
        """The activation behind the sum, if there is one and nothing else reads the sum."""
        readers = flow.readers(candidate)
        if len(readers) == 1 and op_name(flow.value(readers[0])) in pieces.ACTIVATIONS:
            return [readers[0], candidate]
        return [candidate]

    def variants(self) -> Sequence[Variant]:
        """One a kind."""
        return [_variant(kind) for kind in self._kinds]

    def check(self, match: Match) -> str:
        """Every condition that a pattern cannot state."""
        convs = {name: match.parts[name] for name in _CONVS if name in match.parts}
        for conv in convs.values():
            if fault := pieces.unsupported(conv):
                return f"{fault} in `{match.flow.variable(conv).name}`"
        if len({str(conv.attrs.data_layout) for conv in convs.values()}) > 1:
            return "the layout changes inside the block"
        columns = [pieces.groups(conv) for conv in convs.values()]
        if "reduce" in convs:
            pointwise = [pieces.kernel(convs[name]) == (1, 1) for name in ("reduce", "expand")]
            if not all(pointwise) or (columns[0], columns[2]) != (1, 1):
                return "unsupported groups: the outer convolutions should be pointwise, ungrouped"
            return "" if columns[1] > 1 else "unsupported groups: 1, there are no columns"
        if len(set(columns)) > 1:
            return f"unsupported groups: the columns are {columns[0]} and {columns[1]}"
        return "" if columns[0] > 1 else "unsupported groups: 1, there are no columns"

    def explain(self, flow: Dataflow, candidate: Any) -> str:
        """The pattern says it all."""
        del flow, candidate
        kinds = " or ".join(self._kinds)
        return f"what is added up is not a {kinds} branch and its own input"


def _variant(kind: str) -> Variant:
    from tvm.relax.dpl import wildcard

    parts: dict[str, Any] = {"input": wildcard()}
    x = parts["input"]
    conv, act = pieces.convolution, pieces.ACTIVATIONS
    own = x if kind == "basic" else pieces.one_of(act, conv(x, parts, "reduce"))
    branch = conv(pieces.one_of(act, conv(own, parts, "embed")), parts, "expand")
    return Variant(kind, pieces.optional(act, pieces.either_order(pieces.ADD, branch, x)), parts)


def _ends_in_convolution(flow: Dataflow, expression: Any) -> bool:
    value = flow.value(expression)
    if op_name(value) == pieces.ADD and is_constant(value.args[1]):
        value = flow.value(value.args[0])
    return op_name(value) == pieces.CONV
