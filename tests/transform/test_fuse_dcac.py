# SPDX-License-Identifier: Apache-2.0
"""FuseDCAC: what it matches, what it refuses and why, and what it makes."""

import numpy as np
import pytest
import tvm
from relax_blocks import CLASSICAL, HOST, Block, Emitter, module, relative, run, sample
from tvm import relax

from tvmattend.expressions import op_name
from tvmattend.transform import lower, lower_with_report
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.fuse_dcac import FuseDCAC
from tvmattend.transform.grouping import group
from tvmattend.transform.ledger import keep_account, lower_by_default
from tvmattend.transform.rule import judge

RULE = FuseDCAC()
# Stages of a fused kernel add up in the order of the unfused ones; a few roundings differ.
SAME = 1e-5
PUBLISHED = CLASSICAL.with_(condense=None, projected=False, width=8, channels=8)


def verdict(mod):
    """The verdict on the module's only candidate."""
    (judgement,) = judge(RULE, Dataflow(mod["main"]))
    return judgement.verdict


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("flavour", [Block(), CLASSICAL], ids=["dcac", "classical"])
@pytest.mark.parametrize("condense", ["avg", "max", None])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_matches_every_kind_and_flavour(kind, flavour, condense, layout):
    block = flavour.with_(kind=kind, condense=condense, layout=layout)
    found = verdict(block.module())
    words = [
        kind,
        *(["classical"] if flavour.classical else []),
        *(["condensed"] if condense else []),
    ]
    assert found.fused, found.reason
    assert found.variant == ".".join(words)
    assert found.subject in {"out", "gv"}


@pytest.mark.parametrize(
    "change",
    [
        {"features_first": True},
        {"features_first": True, "scale": 0.7, "residual": True},
        {"gate": "sigmoid"},
        {"scale": 0.7},
        {"scale": 0.7, "scaled": "gate"},
        {"scale": 0.7, "scaled": "gate", "gate": "sigmoid", "residual": True},
        {"scale": 0.7, "scaled": "features", "features_first": True},
        {"residual": True},
        {"residual_of_input": True, "condense": None, "channels": 8},
        {"residual_of_input": True, "condense": None, "channels": 8, "features_first": True},
        {"activation": False},
        {"inner_activations": False},
        {"inner_activations": False, "kind": "bottleneck"},
        {"bias": False},
        {"batch": 4},
        {"columns": 1},
        {"columns": 2, "incoming": 6},
        {"size": (7, 9)},
        {"width": 28, "channels": 28, "incoming": 20},
    ],
    ids=",".join,
)
def test_matches_every_spelling(change):
    found = verdict(Block(**change).module())
    assert found.fused, found.reason


@pytest.mark.parametrize("condense", [None, "max"])
@pytest.mark.parametrize("scaled", ["gate", "features", "product"])
def test_a_classical_condenser_may_gate_what_it_reads(condense, scaled):
    """V' = V * A * S + V, as arXiv 2008.04245 has it: no projection."""
    block = PUBLISHED.with_(condense=condense, scaled=scaled)
    found = verdict(block.module())
    assert found.fused, found.reason
    words = ["basic", "classical", "unprojected", *(["condensed"] if condense else [])]
    assert found.variant == ".".join(words)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (Block(second_user="embed"), ["second user"]),
        (Block(second_user="gate"), ["`gate` has a second user", "other"]),
        (Block(axis=2), ["softmax over axis 2 of NCHW"]),
        (Block(layout="NHWC", axis=1), ["softmax over axis 1 of NHWC"]),
        (
            Block(kind="bottleneck", feature_pool=("max", 2)),
            ["pooled differently", "avg_pool2d 2x2 (attention)", "max_pool2d 2x2 (features)"],
        ),
        (
            Block(kind="bottleneck", size=(3, 3), feature_pool=("avg", 3)),
            ["pooled differently", "avg_pool2d 2x2 (attention)", "avg_pool2d 3x3 (features)"],
        ),
        (Block(feature_pool=("max", 2)), ["pooled differently", "max_pool2d 2x2 (features)"]),
        (
            Block(kind="bottleneck", condense="max", size=(9, 9), pool_dilations=(1, 2)),
            ["pooled differently", "max_pool2d 2x2 (attention)", "2x2 dilated by 2x2 (features)"],
        ),
        (
            Block(kind="bottleneck", condense="max", size=(9, 9), pool_dilations=(2, 2)),
            ["windows are dilated"],
        ),
        (Block(kind="bottleneck", pool_stride=1), ["windows overlap"]),
        (Block(kind="bottleneck", pool_stride=3), ["windows leave pixels out"]),
        (Block(expand_columns=2), ["unsupported groups", "columns are 2 and 4"]),
        (
            Block(kind="bottleneck", expand_columns=4),
            ["unsupported groups", "`expand`", "ungrouped"],
        ),
        (Block(project_kernel=3), ["unsupported groups", "`project`", "3x3"]),
        (Block(columns=12, incoming=12), ["one channel a group"]),
        (Block(condense=None, stride=2, size=(1, 1)), ["a strided convolution", "`embed`"]),
        (Block(dilation=2), ["a dilated convolution", "`embed`"]),
        (Block(weight_is_input=True), ["no constants", "`embed`"]),
        (Block(other_features=True), ["`lv", "is relax.exp, which no branch of ours has"]),
        (Block(two_projections=True), ["feature branch has 2 convolutions"]),
        (Block(four_embeddings=True), ["attention branch has 5 convolutions, not two to four"]),
        (Block(projected=False, width=8, channels=8), ["feature branch has 0 convolutions"]),
        (CLASSICAL.with_(upsample="linear"), ["`linear`, not nearest"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_says_why_not(block, words):
    found = verdict(block.module())
    assert not found.fused
    assert found.variant == ""
    for word in words:
        assert word in found.reason


def test_dynamic_shape_is_a_reason():
    height = tvm.tirx.Var("height", "int64")
    found = verdict(Block(condense=None, size=(height, 8)).module())
    assert not found.fused
    assert "dynamic shape" in found.reason


def test_a_layout_change_inside_is_no_match():
    def body(e, x):
        hidden = e.act(e.conv(x, 12, 3, 4, "embed"))
        moved = e.emit(relax.op.permute_dims(hidden, [0, 1, 3, 2]), "moved")
        attention = e.conv(moved, 12, 3, 4, "expand")
        gate = e.emit(relax.op.nn.softmax(attention, 1))
        return e.act(e.emit(relax.op.multiply(gate, e.conv(x, 12, 1, name="project"))))

    assert "`moved` is relax.permute_dims" in verdict(module(body, (1, 8, 8, 8))).reason


def test_branches_of_different_inputs_are_told():
    def body(e, x):
        elsewhere = e.emit(relax.op.zeros((1, 8, 8, 8), "float32"), "elsewhere")
        attention = e.conv(e.act(e.conv(x, 12, 3, 4)), 12, 3, 4)
        gate = e.emit(relax.op.nn.softmax(attention, 1))
        return e.act(e.emit(relax.op.multiply(gate, e.conv(elsewhere, 12, 1))))

    found = verdict(module(body, (1, 8, 8, 8))).reason
    assert found == "the branches do not share their input: `x` and `elsewhere`"


def test_a_softmax_over_pixels_is_told():
    def body(e, x):
        attention = e.conv(e.act(e.conv(x, 12, 3, 4)), 12, 3, 4)
        flat = e.emit(relax.op.reshape(attention, (1, 12, 64)), "flat")
        gate = e.emit(relax.op.nn.softmax(flat, 2))
        gate = e.emit(relax.op.reshape(gate, (1, 12, 8, 8)))
        return e.act(e.emit(relax.op.multiply(gate, e.conv(x, 12, 1))))

    assert "`flat` is relax.reshape" in verdict(module(body, (1, 8, 8, 8))).reason


def test_an_activation_of_the_features_is_told():
    def body(e, x):
        attention = e.conv(e.act(e.conv(x, 12, 3, 4)), 12, 3, 4)
        gate = e.emit(relax.op.nn.softmax(attention, 1))
        return e.emit(relax.op.multiply(gate, e.act(e.conv(x, 12, 1), "lit")))

    found = verdict(module(body, (1, 8, 8, 8))).reason
    assert found == "the feature branch has an activation, `lit`"


def test_an_activation_behind_expand_is_told():
    def body(e, x):
        attention = e.act(e.conv(e.act(e.conv(x, 12, 3, 4)), 12, 3, 4), "lit")
        gate = e.emit(relax.op.nn.softmax(attention, 1))
        return e.emit(relax.op.multiply(gate, e.conv(x, 12, 1)))

    found = verdict(module(body, (1, 8, 8, 8))).reason
    assert found == "the attention branch has an activation behind expand, `lit`"


def test_a_sum_with_a_constant_is_no_bias_where_nothing_is_convolved():
    def body(e, x):
        moved = e.emit(relax.op.add(x, e.weight(1, 8, 1, 1)), "moved")
        attention = e.conv(e.act(e.conv(moved, 12, 3, 4)), 12, 3, 4)
        gate = e.emit(relax.op.nn.softmax(attention, 1))
        return e.act(e.emit(relax.op.multiply(gate, e.conv(x, 12, 1))))

    found = verdict(module(body, (1, 8, 8, 8))).reason
    assert found == "`moved` is relax.add, which no branch of ours has there"


@pytest.mark.parametrize("split", [True, False])
def test_a_gated_linear_unit_is_no_candidate(split):
    def body(e, x):
        both = e.conv(x, 16, 3)
        features, gate = (
            e.emit(relax.op.strided_slice(both, [1], [first], [first + 8])) for first in (0, 8)
        )
        if not split:
            features, gate = e.conv(x, 8, 3), e.conv(x, 8, 3)
        return e.emit(relax.op.multiply(features, e.emit(relax.op.sigmoid(gate))))

    assert judge(RULE, Dataflow(module(body, (1, 8, 8, 8))["main"])) == []


@pytest.mark.parametrize("of_features", [True, False])
@pytest.mark.parametrize("gate", [relax.op.sigmoid, relax.op.nn.softmax])
def test_a_gate_without_a_convolution_is_no_candidate(gate, of_features):
    def body(e, x):
        features = e.conv(x, 8, 3)
        gated = e.emit(gate(features if of_features else x))
        return e.act(e.emit(relax.op.multiply(features, gated)))

    assert judge(RULE, Dataflow(module(body, (1, 8, 8, 8))["main"])) == []


def test_an_order_that_nobody_knows_is_a_reason():
    def body(e, x):
        attention = e.conv(e.act(e.act(e.conv(x, 12, 3, 4))), 12, 3, 4)
        gate = e.emit(relax.op.nn.softmax(attention, 1))
        return e.act(e.emit(relax.op.multiply(gate, e.conv(x, 12, 1))))

    assert "are in no order that is known" in verdict(module(body, (1, 8, 8, 8))).reason


def test_layouts_that_differ_within_the_block_are_a_reason():
    """Both read the map as it lies, one as NCHW and the other as NHWC: shapes do not tell."""

    def body(e, x):
        attention = e.conv(e.act(e.conv(x, 8, 3, 4)), 8, 3, 4)
        features = e.conv(x, 8, 1, data_layout="NHWC")
        gate = e.emit(relax.op.nn.softmax(attention, 1))
        return e.act(e.emit(relax.op.multiply(gate, features)))

    emitter = Emitter(bias=False)
    found = verdict(module(body, (1, 8, 8, 8), emitter))
    assert found.reason == "the layout changes inside the block"


def test_a_match_that_the_layouts_take_apart_is_told():
    mod = Block(kind="bottleneck", width=64, channels=96, incoming=48, size=(14, 14)).module()
    rule = FuseDCAC(absorb_layout_change=False)
    report = lower_with_report(mod, HOST, rules=[rule]).fusion
    assert report.of_rule(RULE.name) == (0, 1)
    assert "is relax.permute_dims, which no branch of ours has" in report.verdicts[0].reason


def test_an_inner_result_that_the_network_returns_is_a_reason():
    e = Emitter()
    x = relax.Var("x", relax.TensorType((1, 8, 8, 8), "float32"))
    with e.builder.function("main", [x]):
        with e.builder.dataflow():
            attention = e.conv(e.act(e.conv(x, 12, 3, 4, "embed")), 12, 3, 4, "expand")
            gate = e.builder.emit_output(relax.op.nn.softmax(attention, 1), "gate")
            features = e.conv(x, 12, 1, name="project")
            y = e.builder.emit_output(relax.op.multiply(gate, features))
        e.builder.emit_func_output(relax.Tuple([y, gate]))
    assert "`gate` is an output of the network too" in verdict(e.builder.get()).reason


def test_squeeze_and_excitation_is_no_candidate():
    def body(e, x):
        pooled = e.emit(relax.op.mean(x, [2, 3], keepdims=True))
        gate = e.emit(relax.op.sigmoid(e.conv(pooled, 8, 1)))
        return e.emit(relax.op.multiply(gate, x))

    assert judge(RULE, Dataflow(module(body, (1, 8, 8, 8))["main"])) == []


def expected(before):
    """What `group` should make of a module that is one block: all of it in one function."""
    main = before["main"]
    bindings = main.body.blocks[0].bindings
    names = "_".join(op_name(binding.value).replace(".", "_") for binding in bindings)
    attrs = tvm.ir.make_node("ir.DictAttrs", Composite=RULE.name, Primitive=True)
    inner = relax.Function(main.params, main.body, main.ret_ty, True, attrs)
    builder = relax.BlockBuilder()
    gvar = builder.add_func(inner, f"fused_{names}")
    x = relax.Var("x", main.params[0].ty)
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.Call(gvar, [x]))
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("flavour", [Block(), CLASSICAL], ids=["dcac", "classical"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_whole_block_becomes_one_function(kind, flavour, layout):
    before = flavour.with_(kind=kind, layout=layout).module()
    after = group(before, [RULE])
    tvm.ir.assert_structural_equal(after, expected(before), map_free_vars=True)


def test_what_does_not_match_stays_as_it_is():
    before = Block(axis=2).module()
    tvm.ir.assert_structural_equal(group(before, [RULE]), before)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("flavour", [Block(), CLASSICAL], ids=["dcac", "classical"])
def test_one_kernel_where_tvm_alone_needs_more(kind, flavour):
    """The rule earns its place: default FuseOps leaves four kernels or more."""
    mod = flavour.with_(kind=kind).module()
    with HOST.to_tvm():
        default = keep_account(lower_by_default(mod), 1)
    fused = keep_account(lower(mod, HOST, rules=[RULE]), 1)
    assert default.kernel_launches >= 5
    assert fused.kernel_launches == 1
    assert fused.intermediate_bytes == 0 < default.intermediate_bytes


@pytest.mark.parametrize(
    "block",
    [
        Block(kind="bottleneck", width=28, channels=56, batch=2),
        CLASSICAL.with_(size=(7, 9), features_first=True),
        PUBLISHED.with_(size=(7, 9)),
        PUBLISHED.with_(condense="max", size=(9, 11)),
        Block(inner_activations=False),
    ],
    ids=["dcac", "classical", "published", "published, condensed", "linear"],
)
def test_numbers_do_not_change(block):
    mod = block.module()
    x = sample(mod)
    wanted = run(lower(mod, HOST, rules=()), x)
    assert relative(run(lower(mod, HOST, rules=[RULE]), x), wanted) < SAME


def test_a_wrong_weight_shows_in_the_numbers():
    """The comparison above can fail."""
    mod, other = Block().module(), Block(channels=12, bias=False).module()
    x = sample(mod)
    wanted = run(lower(mod, HOST, rules=()), x)
    assert relative(run(lower(other, HOST, rules=[RULE]), x), wanted) > 0.01


def test_two_blocks_that_share_an_input_are_two_kernels():
    def body(e, x):
        first = Block(condense=None).emit(e, x)
        second = Block(kind="bottleneck", condense=None).emit(e, x)
        return e.emit(relax.op.add(first, second))

    report = lower_with_report(module(body, (1, 8, 8, 8)), HOST, rules=[RULE]).fusion
    assert report.of_rule(RULE.name) == (2, 2)


def test_a_change_of_layout_at_the_edge_belongs_to_the_kernel():
    """Convolutions in NHWC that read a map in NCHW cost one launch, not three."""

    def body(e, x):
        moved = e.emit(relax.op.permute_dims(x, [0, 2, 3, 1]), "moved")
        own = e.pool(e.act(e.conv(moved, 12, 1)), "avg")
        attention = e.conv(e.act(e.conv(own, 12, 3, 4)), 20, 1)
        pooled = e.emit(relax.op.nn.avg_pool2d(x, [2, 2], [2, 2]), "pool")
        features = e.conv(e.emit(relax.op.permute_dims(pooled, [0, 2, 3, 1])), 20, 1)
        gate = e.emit(relax.op.nn.softmax(attention, 3))
        return e.act(e.emit(relax.op.multiply(gate, features)))

    mod = module(body, (1, 8, 8, 8), Emitter("NHWC"))
    assert verdict(mod).variant == "bottleneck.condensed.layout"
    (judgement,) = judge(FuseDCAC(absorb_layout_change=False), Dataflow(mod["main"]))
    assert not judgement.verdict.fused
    x = sample(mod)
    lowered = lower(mod, HOST, rules=[RULE])
    assert keep_account(lowered, 1).kernel_launches == 1
    assert relative(run(lowered, x), run(lower(mod, HOST, rules=()), x)) < SAME
    assert np.isfinite(x).all()
