# SPDX-License-Identifier: Apache-2.0
"""Layouts change at the edges of blocks, once, and poolings follow."""

import tvm
from relax_blocks import HOST, Block, Emitter, module, relative, run, sample
from tvm import relax

from schedules.machines import AARCH64
from tvmattend.transform.dataflow import Dataflow, is_constant
from tvmattend.transform.fuse_dcac import FuseDCAC
from tvmattend.transform.hoist_layout_change import hoist_layout_changes
from tvmattend.transform.layout import (
    CHANNELS,
    PIXELS,
    ConvShape,
    Region,
    assign_layouts,
    choose_layouts,
)
from tvmattend.transform.pipeline import lower
from tvmattend.transform.rule import judge


def conv(channels, pixels, features, kernel=1, groups=1):
    return ConvShape(
        1, channels, pixels, pixels, features, pixels, pixels, (kernel, kernel), 1, groups
    )


def test_a_region_is_paid_as_a_whole():
    """On its own the second convolution would take pixels; its block outvotes it."""
    small = [conv(372, 7, 372, 3, 4), conv(372, 7, 744)]
    large = conv(40, 56, 40, 3, 4)
    apart = [Region((part,), 1) for part in (*small, large)]
    assert choose_layouts(apart, AARCH64) == [CHANNELS, CHANNELS, PIXELS]
    together = [Region((*small, large), 1)]
    assert len(choose_layouts(together, AARCH64)) == 1


def bottleneck():
    """A block on a small map of many channels, which wants channels in the vectors."""
    return Block(kind="bottleneck", width=64, channels=96, incoming=48, size=(14, 14))


def layouts(mod):
    return [
        str(call.attrs.data_layout) for _, call in Dataflow(mod["main"]).calls("relax.nn.conv2d")
    ]


def test_a_block_has_one_layout_and_one_change():
    mod = bottleneck().module()
    (judgement,) = judge(FuseDCAC(), Dataflow(mod["main"]))
    blocks = [judgement.match.members]
    with HOST.to_tvm():
        mod = assign_layouts(mod, AARCH64, blocks)
        assert set(layouts(mod)) == {CHANNELS}
        mod = hoist_layout_changes(mod, {"pool", "pool_features"})
    flow = Dataflow(mod["main"])
    changes = [
        (variable, call.args[0])
        for variable, call in flow.calls("relax.permute_dims")
        if not is_constant(call.args[0])
    ]
    # The input once, for both of its readers; then the network's output, which stays NCHW.
    assert len(changes) == 2
    assert flow.is_output(changes[1][0])
    assert changes[0][1].same_as(mod["main"].params[0])
    assert len(flow.readers(changes[0][0])) == 2
    pools = [call for _, call in flow.calls("relax.nn.avg_pool2d")]
    assert {str(call.attrs.layout) for call in pools} == {CHANNELS}


def test_hoisting_moves_the_change_and_nothing_else():
    def before(e, x):
        pooled = e.emit(relax.op.nn.avg_pool2d(x, [2, 2], [2, 2]), "pool")
        moved = e.emit(relax.op.permute_dims(pooled, [0, 2, 3, 1]), "moved")
        return e.emit(relax.op.exp(moved))

    def after(e, x):
        moved = e.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
        return e.emit(
            relax.op.exp(
                e.emit(relax.op.nn.avg_pool2d(moved, [2, 2], [2, 2], layout="NHWC"), "pool")
            )
        )

    shape = (1, 8, 6, 6)
    found = hoist_layout_changes(module(before, shape), {"pool"})
    tvm.ir.assert_structural_equal(found, module(after, shape), map_free_vars=True)


def test_hoisting_leaves_other_pools_alone():
    def body(e, x):
        pooled = e.emit(relax.op.nn.max_pool2d(x, [2, 2], [2, 2]), "pool")
        return e.emit(relax.op.exp(e.emit(relax.op.permute_dims(pooled, [0, 2, 3, 1]))))

    before = module(body, (1, 8, 6, 6))
    tvm.ir.assert_structural_equal(hoist_layout_changes(before, {"another"}), before)


def test_hoisting_leaves_a_pool_that_both_layouts_read():
    def body(e, x):
        pooled = e.emit(relax.op.nn.max_pool2d(x, [2, 2], [2, 2]), "pool")
        moved = e.emit(relax.op.permute_dims(pooled, [0, 2, 3, 1]))
        return relax.Tuple([e.emit(relax.op.exp(moved)), e.emit(relax.op.exp(pooled))])

    before = module(body, (1, 8, 6, 6))
    tvm.ir.assert_structural_equal(hoist_layout_changes(before, {"pool"}), before)


def test_a_block_in_channels_computes_the_same():
    mod = bottleneck().module()
    x = sample(mod)
    fused = lower(mod, HOST, rules=[FuseDCAC()])
    assert relative(run(fused, x), run(lower(mod, HOST, rules=()), x)) < 1e-5


def test_emitter_layouts_differ():
    """The helper's NHWC is not NCHW by another name."""
    assert layouts(Block(layout="NHWC").module()) == [CHANNELS] * 3
    assert Emitter("NHWC").layout != Emitter().layout
