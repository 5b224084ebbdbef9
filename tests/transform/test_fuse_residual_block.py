# SPDX-License-Identifier: Apache-2.0
"""FuseResidualBlock: plain blocks of columns become one kernel, others are refused in words."""

import pytest
import tvm
from relax_blocks import HOST, Emitter, module, relative, run, sample
from tvm import relax

from tvmattend.expressions import op_name
from tvmattend.transform import lower
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.fuse_residual_block import FuseResidualBlock
from tvmattend.transform.grouping import group
from tvmattend.transform.ledger import keep_account, lower_by_default
from tvmattend.transform.rule import judge

RULE = FuseResidualBlock()


def block(kind="basic", layout="NCHW", columns=4, expand_columns=None, order=1, **options):
    def body(e, x):
        own = e.act(e.conv(x, 8, 1, name="reduce")) if kind == "bottleneck" else x
        hidden = e.act(e.conv(own, 8, 3, columns, "embed", **options))
        last = (1, expand_columns or 1) if kind == "bottleneck" else (3, expand_columns or columns)
        branch = e.conv(hidden, 12 if kind == "bottleneck" else 8, *last, "expand")
        total = e.emit(relax.op.add(*[branch, x][::order]), "total")
        return e.act(total, "out")

    channels = 12 if kind == "bottleneck" else 8
    shape = (1, channels, 9, 7) if layout == "NCHW" else (1, 9, 7, channels)
    return module(body, shape, Emitter(layout))


def verdict(mod):
    (judgement,) = judge(RULE, Dataflow(mod["main"]))
    return judgement.verdict


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", [1, -1])
def test_matches(kind, layout, order):
    found = verdict(block(kind, layout, order=order))
    assert (found.fused, found.variant) == (True, kind), found.reason


@pytest.mark.parametrize(
    ("mod", "reason"),
    [
        (lambda: block(columns=1), "unsupported groups: 1, there are no columns"),
        (lambda: block("bottleneck", columns=1), "unsupported groups: 1, there are no columns"),
        (lambda: block(expand_columns=2), "unsupported groups: the columns are 4 and 2"),
        (lambda: block("bottleneck", expand_columns=4), "should be pointwise, ungrouped"),
        (lambda: block(dilation=2, padding=2), "a dilated convolution in `embed`"),
        (lambda: block(columns=8), "one channel a group"),
    ],
)
def test_says_why_not(mod, reason):
    found = verdict(mod())
    assert not found.fused
    assert reason in found.reason


def test_a_sum_with_something_else_is_no_residual_block():
    def body(e, x):
        branch = e.conv(e.act(e.conv(x, 8, 3, 4)), 8, 3, 4)
        return e.emit(relax.op.add(branch, e.emit(relax.op.exp(x))))

    assert "not a basic or bottleneck branch" in verdict(module(body, (1, 8, 8, 8))).reason


def test_a_second_user_is_a_reason():
    def body(e, x):
        hidden = e.act(e.conv(x, 8, 3, 4), "hidden")
        y = e.emit(relax.op.add(e.conv(hidden, 8, 3, 4), x))
        return relax.Tuple([y, e.emit(relax.op.exp(hidden), "other")])

    assert "`hidden` has a second user, `other`" in verdict(module(body, (1, 8, 8, 8))).reason


def test_kinds_can_be_left_out():
    (judgement,) = judge(FuseResidualBlock(["basic"]), Dataflow(block("bottleneck")["main"]))
    assert "not a basic branch" in judgement.verdict.reason


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_whole_block_becomes_one_function(kind):
    before = block(kind)
    after = group(before, [RULE])
    (inner,) = [f for _, f in after.functions_items() if f.attrs and "Composite" in f.attrs]
    assert str(inner.attrs["Composite"]) == RULE.name
    wanted = before["main"].without_attr("global_symbol")
    plain = inner.without_attr("Composite").without_attr("Primitive")
    tvm.ir.assert_structural_equal(plain, wanted, map_free_vars=True)
    (binding,) = after["main"].body.blocks[0].bindings
    assert op_name(binding.value) == ""  # a call of the function, of no operator


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_one_kernel_with_the_same_numbers(kind):
    mod = block(kind)
    x = sample(mod)
    fused = lower(mod, HOST, rules=[RULE])
    with HOST.to_tvm():
        default = keep_account(lower_by_default(mod), 1).kernel_launches
    assert keep_account(fused, 1).kernel_launches < default
    assert relative(run(fused, x), run(lower(mod, HOST, rules=()), x)) < 1e-5
