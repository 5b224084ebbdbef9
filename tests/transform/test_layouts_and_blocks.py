# SPDX-License-Identifier: Apache-2.0
"""Layouts change at the edges of blocks, where they cost nothing."""

from dataclasses import replace

import pytest
from relax_blocks import HOST, Block, Emitter, relative, run, sample
from tvm import relax

from schedules.machines import CORTEX_A72
from tvmattend.expressions import is_constant, op_name
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.fuse_dcac import FuseDCAC
from tvmattend.transform.layout import (
    CHANNELS,
    PIXELS,
    ConvShape,
    Region,
    assign_layouts,
    choose_layouts,
    vector_operations,
)
from tvmattend.transform.pipeline import lower
from tvmattend.transform.rule import judge
from tvmattend.tuning.tasks import extract_tasks


def conv(channels, pixels, features, kernel=1, groups=1):
    sides = (channels, pixels, pixels, features, pixels, pixels)
    padding = (kernel // 2,) * 4
    return ConvShape(1, *sides, (kernel, kernel), (1, 1), padding, groups)


def test_a_region_is_paid_as_a_whole():
    """On its own the second convolution would take pixels; its block outvotes it."""
    small = [conv(372, 7, 372, 3, 4), conv(372, 7, 744)]
    large = conv(40, 56, 40, 3, 4)
    apart = [Region((part,), 1) for part in (*small, large)]
    assert choose_layouts(apart, CORTEX_A72) == [CHANNELS, CHANNELS, PIXELS]
    together = [Region((*small, large), 1)]
    assert len(choose_layouts(together, CORTEX_A72)) == 1


@pytest.mark.parametrize(("channels", "pixels"), [(32, 56), (64, 56), (64, 28), (128, 28)])
def test_few_channels_a_column_are_pixels_though_vectors_divide_them(channels, pixels):
    """A Cortex-A72 takes 20 to 27 % longer where all of such a network lies in channels."""
    block = [conv(channels, pixels, channels, 3, 4)] * 2
    assert choose_layouts([Region(tuple(block), channels * pixels**2)], CORTEX_A72) == [PIXELS]


def test_pointwise_sums_over_many_channels_are_no_pixels():
    region = Region((conv(176, 14, 352),), 176 * 14 * 14)
    assert choose_layouts([region], CORTEX_A72) == [CHANNELS]


def test_a_depthwise_convolution_is_no_channels():
    """One feature a group: nothing beside it hides a multiply-add's latency."""
    region = Region((conv(64, 28, 64, 3, 64),), 0)
    assert choose_layouts([region], CORTEX_A72) == [PIXELS]


def test_transforms_are_what_few_channels_pay():
    """Of 176 channels in four columns products are more of the work than of 32."""
    dear, cheap = CORTEX_A72, replace(CORTEX_A72, transform=0.0)
    for layout in (PIXELS, CHANNELS):
        few, many = (
            vector_operations(conv(channels, 28, channels, 3, 4), layout, dear)
            / vector_operations(conv(channels, 28, channels, 3, 4), layout, cheap)
            for channels in (32, 176)
        )
        assert few > many > 1


def bottleneck():
    """A block on a small map of many channels, which wants channels in the vectors."""
    return Block(kind="bottleneck", width=64, channels=96, incoming=48, size=(14, 14))


def layouts(mod):
    return [
        str(call.attrs.data_layout) for _, call in Dataflow(mod["main"]).calls("relax.nn.conv2d")
    ]


def test_a_block_has_one_layout_and_changes_at_its_edges():
    mod = bottleneck().module()
    (judgement,) = judge(FuseDCAC(), Dataflow(mod["main"]))
    with HOST.to_tvm():
        mod = assign_layouts(mod, CORTEX_A72, [judgement.match.members])
    assert set(layouts(mod)) == {CHANNELS}
    flow = Dataflow(mod["main"])
    changed = [
        call.args[0]
        for _, call in flow.calls("relax.permute_dims")
        if not is_constant(call.args[0])
    ]
    # What the first convolution of each branch reads, and the network's output, which stays NCHW.
    assert [op_name(flow.value(source)) for source in changed] == [
        "",
        "relax.nn.avg_pool2d",
        "relax.nn.silu",
    ]
    folded = relax.transform.FoldConstant()(mod)
    (judgement,) = judge(FuseDCAC(), Dataflow(folded["main"]))
    assert judgement.verdict.variant == "bottleneck.condensed.layout"


def test_a_block_in_channels_computes_the_same():
    mod = bottleneck().module()
    x = sample(mod)
    fused = lower(mod, HOST, rules=[FuseDCAC()])
    assert relative(run(fused, x), run(lower(mod, HOST, rules=()), x)) < 1e-5


def test_a_change_of_layout_inside_a_kernel_costs_no_stage():
    (task,) = [
        task
        for task in extract_tasks(lower(bottleneck().module(), HOST, rules=[FuseDCAC()]), HOST)
        if task.name == "dcac"
    ]
    # The pool over the input, in NCHW, and the one inside the block, in NHWC; nothing else.
    families = set(task.space.kernel.split("+"))
    assert families == {"3*conv2d_channels", "winograd_tiles", "average_pool", "reduction"}


def test_a_pool_whose_map_changes_its_layout_keeps_its_own_jobs():
    """A copy is a stage where a sum over 352 channels would read a line of each map."""
    mod = Block(kind="bottleneck", width=64, channels=96, incoming=352, size=(14, 14)).module()
    (task,) = [
        task
        for task in extract_tasks(lower(mod, HOST, rules=[FuseDCAC()]), HOST)
        if task.name == "dcac"
    ]
    # The copies of the input and of its pool; were the latter part of the pool, each of its jobs
    # would gather all channels of a row.
    assert "2*elementwise" in task.space.kernel.split("+")
    x = sample(mod)
    fused = lower(mod, HOST, rules=[FuseDCAC()])
    assert relative(run(fused, x), run(lower(mod, HOST, rules=()), x)) < 1e-5


def test_emitter_layouts_differ():
    """The helper's NHWC is not NCHW by another name."""
    assert layouts(Block(layout="NHWC").module()) == [CHANNELS] * 3
    assert Emitter("NHWC").layout != Emitter().layout
