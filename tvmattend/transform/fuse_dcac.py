# SPDX-License-Identifier: Apache-2.0
"""Fuse a double-condensing attention condenser, whole, into one kernel.

    A = expand(act(embed(condense(x))))              basic
    A = expand(act(embed(condense(act(reduce(x)))))) bottleneck
    A = expand(upsample(act(mix(act(embed(condense(C)))))))   classical condenser, C as above
    B = project(condense(x))
    y = act(gate(A) * B [* S] [+ B])      ->  y = dcac(x, weights)

with gate = softmax over the channels or sigmoid, condense = average or maximum pooling or nothing,
every convolution with or without a bias, every act there or not, S with gate(A), with B or with
their product, and the operands of `*` and `+` in either order. Where nothing is condensed the sum
may be with x, not B. A classical condenser may also gate what it reads, B = C (the published form).
A block with an activation behind expand or project is not fused.
The left side is 8 to 13 operators and, through TVM's FuseOps, four to seven kernels, because it
never joins two convolutions: the condensed input is read twice, and A and softmax(A) go through
memory. On the right the stages share their tiles while these are in cache.

Sources: Wong et al., arXiv 2208.06980 (DC-AC) and arXiv 2008.04245 (the classical condenser).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tvmattend.expressions import is_constant, op_name
from tvmattend.transform import pieces
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.rule import FusionRule, Match, Variant

_ATTENTION = ("reduce", "embed", "mix", "expand")
_CONVS = (*_ATTENTION, "project")


class FuseDCAC(FusionRule):
    """The rule; see the equation at the head of this file.

    Args:
        absorb_layout_change: Take the changes of layout in front of the block's convolutions into
            the kernel too: a convolution that reads the other layout needs no copy of its input.
    """

    name = "tvmattend.dcac"
    kernel = "dcac"

    def __init__(self, *, absorb_layout_change: bool = True) -> None:
        self._absorb = absorb_layout_change

    def candidates(self, flow: Dataflow) -> Iterator[Any]:
        """Every product of a softmax or sigmoid with features of the same shape.

        A gate that is broadcast (squeeze-and-excitation) selects no element, and one with fewer
        than two convolutions of its own (a gated linear unit, a gated convolution) embeds nothing:
        these are other blocks.
        """
        for variable, product in flow.calls(pieces.MULTIPLY):
            left, right = product.args
            if is_constant(left) or is_constant(right):
                continue
            gate, features = _gate_and_features(flow, product)
            if gate is None:
                continue
            same = left.ty.shape is not None and str(left.ty.shape) == str(right.ty.shape)
            if same and len(left.ty.shape) == 4 and _embeds(flow, gate, features):
                yield variable

    def roots(self, flow: Dataflow, candidate: Any) -> Sequence[Any]:
        """The activation behind the gate, or what stands there instead of one."""
        chain = [candidate]
        follow = {pieces.MULTIPLY, pieces.ADD, *pieces.ACTIVATIONS}
        while len(readers := flow.readers(chain[-1])) == 1 and not flow.is_output(chain[-1]):
            if op_name(flow.value(readers[0])) not in follow:
                break
            chain.append(readers[0])
            if op_name(flow.value(readers[0])) in pieces.ACTIVATIONS:
                break
        return chain[::-1]

    def variants(self) -> Sequence[Variant]:
        """Kind x flavour x condensed or not x layout change, the largest subgraphs first."""
        return [
            _variant(bottleneck, classical, condensed, change)
            for bottleneck in (True, False)
            for classical in (True, False)
            for condensed in (True, False)
            for change in ((True, False) if self._absorb else (False,))
        ] + [
            _variant(False, True, condensed, False, projected=False) for condensed in (True, False)
        ]

    def check(self, match: Match) -> str:
        """Every condition that a pattern cannot state."""
        convs = {name: match.parts[name] for name in _CONVS if name in match.parts}
        for name, conv in convs.items():
            if fault := pieces.unsupported(conv):
                return f"{fault} in `{_name(match, name)}`"
        layouts = {str(conv.attrs.data_layout) for conv in convs.values()}
        if len(layouts) > 1:
            return "the layout changes inside the block"
        return (
            _groups_fault(match, convs)
            or _pools_fault(match)
            or _gate_fault(match, layouts.pop())
            or _upsample_fault(match)
        )

    def explain(self, flow: Dataflow, candidate: Any) -> str:
        """Follow both operands of the gate back to where they stop looking like a branch."""
        gate, features = _gate_and_features(flow, flow.value(candidate))
        attention, feature, meeting = _branches(flow, gate, features)
        if meeting is None:
            return _no_meeting(flow, attention, feature)
        activation = _first(flow, feature, meeting, pieces.ACTIVATIONS)
        if activation is not None:
            return f"the feature branch has an activation, `{activation.name}`"
        activation = _ahead_of_convolutions(flow, attention)
        if activation is not None:
            return f"the attention branch has an activation behind expand, `{activation.name}`"
        if feature[meeting] != 1:
            return f"the feature branch has {feature[meeting]} convolutions, not one"
        if attention[meeting] > len(_ATTENTION):
            return f"the attention branch has {attention[meeting]} convolutions, not two to four"
        pools = [_pools(flow, chain, meeting) for chain in (attention, feature)]
        if [pieces.pooling(call) for call in pools[0]] != [pieces.pooling(c) for c in pools[1]]:
            return _pooled_differently(*pools)
        return f"the operators between `{meeting.name}` and the gate are in no order that is known"


def _variant(
    bottleneck: bool, classical: bool, condensed: bool, change: bool, *, projected: bool = True
) -> Variant:
    from tvm.relax.dpl import is_const, is_op, wildcard

    parts: dict[str, Any] = {"input": wildcard()}
    x = parts["input"]
    conv, act = pieces.convolution, pieces.ACTIVATIONS

    def enter(value: Any) -> Any:
        """What a convolution reads of a map in the block's incoming layout."""
        return is_op("relax.permute_dims")(value) if change else value

    shared = pieces.pool(x, parts, "condense") if condensed else x
    features_in = enter(shared)
    if bottleneck:
        # Without poolings both branches read the very same map.
        own = pieces.optional(act, conv(enter(x) if condensed else features_in, parts, "reduce"))
        if condensed:
            # A bottleneck condenses behind its reduction: two poolings, of the same kind.
            own = pieces.pool(own, parts, "condense_reduced")
        key = pieces.pool(own, parts, "query") if classical else own
    else:
        key = enter(pieces.pool(shared, parts, "query")) if classical else features_in
    hidden = pieces.optional(act, conv(key, parts, "embed"))
    if classical:
        hidden = pieces.optional(act, conv(hidden, parts, "mix"))
        hidden = parts["upsample"] = is_op(pieces.RESIZE)(hidden, wildcard())
    attention = conv(hidden, parts, "expand")
    parts["gate"] = pieces.one_of(pieces.GATES, attention)
    features = conv(features_in, parts, "project") if projected else features_in

    def scaled(value: Any) -> Any:
        return pieces.either_order(pieces.MULTIPLY, value, is_const()) | value

    product = scaled(pieces.either_order(pieces.MULTIPLY, scaled(parts["gate"]), scaled(features)))
    selected = pieces.either_order(pieces.ADD, product, features) | product
    if projected and not condensed and not change:
        selected = pieces.either_order(pieces.ADD, product, x) | selected
    words = (
        "bottleneck" if bottleneck else "basic",
        *(("classical",) if classical else ()),
        *(() if projected else ("unprojected",)),
        *(("condensed",) if condensed else ()),
        *(("layout",) if change else ()),
    )
    return Variant(".".join(words), pieces.optional(act, selected), parts)


def _groups_fault(match: Match, convs: dict[str, Any]) -> str:
    """Columns are the jobs of the kernel: one number of them, and none where channels mix."""
    mixing: list[str] = [name for name in ("reduce", "mix", "project") if name in convs]
    if "reduce" in convs or "mix" in convs:
        mixing.append("expand")
    for name in mixing:
        conv = convs[name]
        if pieces.groups(conv) != 1 or pieces.kernel(conv) != (1, 1):
            return (
                f"unsupported groups: `{_name(match, name)}` should be pointwise and ungrouped, "
                f"it has {pieces.groups(conv)} groups and a kernel of "
                f"{'x'.join(map(str, pieces.kernel(conv)))}"
            )
    columns = sorted({pieces.groups(conv) for name, conv in convs.items() if name not in mixing})
    if len(columns) > 1:
        return f"unsupported groups: the columns are {columns[0]} and {columns[1]}"
    return ""


def _pools_fault(match: Match) -> str:
    pools = match.named("condense", "condense_reduced")
    if len({pieces.pooling(call) for call in pools}) > 1:
        return _pooled_differently(pools[1:], pools[:1])
    return next((fault for call in pools if (fault := pieces.not_apart(call))), "")


def _pooled_differently(attention: Sequence[Any], features: Sequence[Any]) -> str:
    words = [
        ", ".join(_describe(pieces.pooling(call)) for call in calls) or "not at all"
        for calls in (attention, features)
    ]
    return f"the branches are pooled differently: {words[0]} (attention), {words[1]} (features)"


def _describe(pooling: tuple[Any, ...]) -> str:
    operator, size, strides, padding, dilation, rounds_up, counts = pooling
    words = [str(operator).rpartition(".")[2], "x".join(map(str, size))]
    words += [f"by {'x'.join(map(str, strides))}"] if size != strides else []
    words += [f"padded by {','.join(map(str, padding))}"] if any(padding) else []
    dilated = any(step != 1 for step in dilation)
    words += [f"dilated by {'x'.join(map(str, dilation))}"] if dilated else []
    words += ["that counts no padding"] if counts is False else []
    return " ".join([*words, "rounded up"] if rounds_up else words)


def _gate_fault(match: Match, layout: str) -> str:
    gate = match.parts["gate"]
    if op_name(gate) != "relax.nn.softmax":
        return ""
    rank, axis = len(layout), int(gate.attrs.axis)
    if axis % rank != layout.index("C"):
        return f"softmax over axis {axis} of {layout}, not over the channels"
    return ""


def _upsample_fault(match: Match) -> str:
    if "upsample" not in match.parts:
        return ""
    upsample = match.parts["upsample"]
    method = str(upsample.attrs.method)
    if method != "nearest_neighbor":
        return f"upsampling is `{method}`, not nearest"
    return ""


def _name(match: Match, part: str) -> str:
    return str(match.flow.variable(match.parts[part]).name)


def _gate_and_features(flow: Dataflow, product: Any) -> tuple[Any, Any]:
    """The operand that is a gate, without what scales or reshapes it, and the other; else None."""
    left, right = product.args
    for operand, other in ((left, right), (right, left)):
        here = operand
        while op_name(call := flow.value(here)) in {pieces.MULTIPLY, pieces.RESHAPE}:
            varying = [argument for argument in call.args if not is_constant(argument)]
            if op_name(call) == pieces.MULTIPLY and len(varying) != 1:
                break
            here = varying[0]
        if op_name(flow.value(here)) in pieces.GATES:
            return here, other
    return None, None


def _embeds(flow: Dataflow, gate: Any, features: Any) -> bool:
    """Whether two convolutions or more lie before a gate and not before the features."""
    before = flow.ancestors(flow.value(gate).args[0]) | {flow.value(gate).args[0]}
    own = before - flow.ancestors(features) - {features}
    return sum(op_name(flow.value(here)) == pieces.CONV for here in own) > 1


def _first(flow: Dataflow, chain: dict[Any, int], end: Any, operators: Sequence[str]) -> Any:
    """The first variable of a chain, up to another of it, that one of some operators computes."""
    before = list(chain)[: list(chain).index(end)]
    return next((here for here in before if op_name(flow.value(here)) in operators), None)


def _ahead_of_convolutions(flow: Dataflow, chain: dict[Any, int]) -> Any:
    """The activation between a gate and the convolution that it gates with, if any."""
    last = [here for here, convolutions in chain.items() if convolutions == 0]
    return next((here for here in last if op_name(flow.value(here)) in pieces.ACTIVATIONS), None)


def _no_meeting(flow: Dataflow, attention: dict[Any, int], feature: dict[Any, int]) -> str:
    """Why two chains have no variable in common: they end at an operator, or at other inputs."""
    ends = [list(chain)[-1] for chain in (attention, feature)]
    before = [{end} | flow.ancestors(end) for end in ends]
    for end in ends:
        if op_name(flow.value(end)) and not before[0].isdisjoint(before[1]):
            return f"`{end.name}` is {op_name(flow.value(end))}, which no branch of ours has there"
    return f"the branches do not share their input: `{ends[0].name}` and `{ends[1].name}`"


def _pools(flow: Dataflow, chain: dict[Any, int], end: Any) -> list[Any]:
    """Poolings of a chain up to a variable of it."""
    before = list(chain)[: list(chain).index(end)]
    return [value for here in before if op_name(value := flow.value(here)) in pieces.POOLS]


def _branches(
    flow: Dataflow, gate: Any, features: Any
) -> tuple[dict[Any, int], dict[Any, int], Any]:
    """The chains that end in a gate's argument and in the features, and where they meet if so."""
    attention, feature = _chain(flow, flow.value(gate).args[0]), _chain(flow, features)
    return attention, feature, next((here for here in feature if here in attention), None)


def _chain(flow: Dataflow, start: Any) -> dict[Any, int]:
    """Variables from a branch's end towards the input, each with the convolutions behind it."""
    passable = {pieces.CONV, *pieces.POOLS, *pieces.ACTIVATIONS, pieces.RESIZE}
    chain, convs, here = {start: 0}, 0, start
    while True:
        call = flow.value(here)
        operator = op_name(call)
        bias = (
            operator == pieces.ADD
            and is_constant(call.args[1])
            and op_name(flow.value(call.args[0])) == pieces.CONV
        )
        if not bias and operator not in passable:
            return chain
        convs += operator == pieces.CONV
        here = call.args[0]
        chain[here] = convs
