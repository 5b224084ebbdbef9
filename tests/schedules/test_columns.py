# SPDX-License-Identifier: Apache-2.0
"""Stages computed column by column: when, and with the same result as stage by stage."""

import numpy as np
import pytest
import torch
from one_kernel import HOST, constants, parallel_loops, relative, run_point
from tvm import relax, s_tir, te

from schedules import conv2d_pixels, space_for
from schedules.columns import KNOB
from schedules.machines import machine_of
from tvmattend.target import parse_target
from tvmattend.transform import lower
from tvmattend.transform.ledger import scratch_bytes
from tvmattend.tuning.tasks import extract_tasks, kernel_module

CHANNELS, FEATURES = 24, 24


def plain_block(x, columns, weights):
    """act(expand(act(embed(x))) + x) in PyTorch."""
    silu, conv = torch.nn.functional.silu, torch.nn.functional.conv2d
    hidden = silu(conv(x, weights[0], padding=1, groups=columns[0]))
    return silu(conv(hidden, weights[1], padding=1, groups=columns[1]) + x)


def kernel(columns=(4, 4), batch=1, size=(12, 10), threads=1):
    """The task of a plain block as one kernel, its arguments, and what PyTorch makes of it."""
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, CHANNELS, *size)).astype("float32")
    weights = [
        random.standard_normal((FEATURES, CHANNELS // groups, 3, 3)).astype("float32") * 0.2
        for groups in columns
    ]
    builder = relax.BlockBuilder()
    var = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with builder.function("main", [var]):
        with builder.dataflow():

            def conv(y, place):
                weight, groups = relax.const(weights[place]), columns[place]
                return builder.emit(relax.op.nn.conv2d(y, weight, padding=1, groups=groups))

            def silu(y):
                return builder.emit(relax.op.nn.silu(y))

            total = builder.emit(relax.op.add(conv(silu(conv(var, 0)), 1), var))
            out = builder.emit_output(relax.op.nn.silu(total))
        builder.emit_func_output(out)
    target = parse_target("host", threads)
    mod = lower(relax.transform.CanonicalizeBindings()(builder.get()), target)
    tasks = extract_tasks(mod, target)
    wanted = plain_block(torch.from_numpy(x), columns, [torch.from_numpy(w) for w in weights])
    return tasks, [x, *constants(mod), np.zeros_like(x)], wanted.numpy()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(12, 10), (9, 7)])  # Winograd, and an odd map without
def test_same_numbers(batch, size):
    (task,), arrays, wanted = kernel(batch=batch, size=size)
    assert task.space.default[KNOB] == 1
    for choice in (0, 1):
        found = run_point(task, {**task.space.default, KNOB: choice}, arrays)
        assert relative(found, wanted) < 1e-5


def loops(task, choice):
    """Parallel loops of the scheduled kernel."""
    schedule = s_tir.Schedule(task.mod)
    task.space.apply(schedule, {**task.space.default, KNOB: choice})
    return parallel_loops(schedule)


def test_one_parallel_loop_and_one_column_between_the_stages():
    (task,), _, _ = kernel(batch=2)
    assert loops(task, 1) == [2 * 4]
    assert len(loops(task, 0)) == 2

    def scratch(choice):
        schedule = s_tir.Schedule(task.mod)
        task.space.apply(schedule, {**task.space.default, KNOB: choice})
        return scratch_bytes(schedule.mod["main"], 1)

    column, image = 4 * FEATURES // 4 * 12 * 10, 4 * 2 * FEATURES * 12 * 10
    assert scratch(0) - scratch(1) >= image - column


@pytest.mark.parametrize(("threads", "default"), [(1, 1), (2, 1), (3, 0), (4, 1)])
def test_default_shares_out_evenly(threads, default):
    (task,), _, _ = kernel(threads=threads)
    assert task.space.default[KNOB] == default


@pytest.mark.parametrize(
    ("groups", "channel", "together"),
    [
        ((4, 4), lambda c: c, True),
        ((4, 4), lambda c: FEATURES - 1 - c, False),  # reads another column of the first stage
        ((4, 2), lambda c: c, False),
        ((4, 1), lambda c: c, False),
    ],
)
def test_columns_that_mix_end_a_run(groups, channel, together):
    machine = machine_of(HOST.to_tvm())
    x = te.placeholder((1, CHANNELS, 9, 7), name="x")
    weights = [
        te.placeholder((g, CHANNELS // g, 3, 3, FEATURES // g), name=f"w{g}") for g in groups
    ]
    same = ((1, 1), (1, 1, 1, 1))
    hidden = conv2d_pixels.conv2d(x, weights[0], *same, machine)
    expanded = conv2d_pixels.conv2d(hidden, weights[1], *same, machine)
    out = te.compute(
        expanded.shape, lambda n, c, y, q: expanded[n, c, y, q] + hidden[n, channel(c), y, q]
    )
    mod = kernel_module(te.create_prim_func([x, *weights, out]))
    assert (KNOB in space_for(mod, HOST.to_tvm()).default) == together
