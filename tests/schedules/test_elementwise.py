# SPDX-License-Identifier: Apache-2.0
"""Element-wise kernels: the same numbers, in vectors that never lie on two lines of a map."""

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from one_kernel import HOST, lowered, relative, run_point
from tvm import relax, tirx

from tvmattend.target import parse_target
from tvmattend.tuning.tasks import extract_tasks


def gated(shape, target=HOST):
    """The task of `x * gate`, with a number of `gate` for each map, and its arguments."""

    def function(builder, x, gate):
        del builder
        return relax.op.multiply(x, gate)

    random = np.random.default_rng(0)
    arrays = [
        random.standard_normal(size).astype("float32")
        for size in (shape, (*shape[:2], *[1] * len(shape[2:])))
    ]
    return extract_tasks(lowered(function, arrays, target), target), arrays


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), data=st.data())
def test_the_same_numbers(shape, data):
    (task,), (x, gate) = gated(shape)
    point = {knob.name: data.draw(st.sampled_from(knob.choices)) for knob in task.space.knobs}
    wanted = x * gate
    assert relative(run_point(task, point, [x, gate, np.zeros_like(wanted)]), wanted) < 1e-5


@pytest.mark.parametrize(
    ("target", "shape", "loops"),
    [
        ("x86-64-v4", (1, 64, 64, 64), [("PARALLEL", 64 * 64 * 4), ("VECTORIZED", 16)]),
        # Maps of 56 pixels have lines of three and a half vectors; LLVM goes through a map.
        ("x86-64-v4", (1, 64, 56, 56), [("PARALLEL", 64), ("SERIAL", 56 * 56)]),
        ("x86-64-v3", (1, 64, 56, 56), [("PARALLEL", 64 * 56 * 7), ("VECTORIZED", 8)]),
        ("cortex-a72", (1, 176, 14, 14), [("PARALLEL", 176), ("SERIAL", 14 * 14)]),
        ("cortex-a72", (1, 4, 7, 7), [("SERIAL", 4 * 7 * 7)]),
        ("cortex-a72", (1, 20001), [("PARALLEL", 1), ("SERIAL", 20001)]),
    ],
)
def test_a_vector_lies_on_one_line(target, shape, loops):
    target = parse_target(target, 2)
    (task,), _ = gated(shape, target)
    schedule = tvm.s_tir.Schedule(task.mod)
    task.space.apply(schedule, task.space.default)
    (block,) = schedule.get_child_blocks(schedule.get_sblock("root"))
    found = [schedule.get(loop) for loop in schedule.get_loops(block)]
    wanted = [(int(getattr(tirx.ForKind, kind)), extent) for kind, extent in loops]
    assert [(int(loop.kind), int(loop.extent)) for loop in found] == wanted
