# SPDX-License-Identifier: Apache-2.0
"""Changes of layout: the same numbers, read in the order in which they lie."""

import itertools

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from one_kernel import HOST, lowered, parallel_loops, run_point
from tvm import relax, tirx

from tvmattend.target import parse_target
from tvmattend.tuning.tasks import extract_tasks

A72 = parse_target("cortex-a72")


def change(shape, axes, target=HOST, activation=None):
    """The task of one permutation of a map's axes."""

    def function(builder, x):
        moved = builder.emit(relax.op.permute_dims(x, axes))
        return activation(moved) if activation else moved

    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    (task,) = extract_tasks(lowered(function, [x], target), target)
    return task, x


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 2), *[st.integers(1, 21)] * 3]),
    axes=st.sampled_from(list(itertools.permutations(range(4)))),
)
def test_the_same_numbers(shape, axes):
    task, x = change(shape, axes)
    wanted = x.transpose(axes)
    assert np.array_equal(run_point(task, task.space.default, [x, np.zeros_like(wanted)]), wanted)


def test_an_activation_behind_it():
    task, x = change((1, 24, 7, 9), (0, 2, 3, 1), activation=relax.op.nn.relu)
    wanted = np.maximum(x.transpose(0, 2, 3, 1), 0)
    assert np.array_equal(run_point(task, task.space.default, [x, np.zeros_like(wanted)]), wanted)


@pytest.mark.parametrize(
    ("target", "axes", "loops"),
    [
        # 32 channels in lines of 16, all rows and pixels of these; a pixel's channels are written.
        (A72, (0, 2, 3, 1), [1 * 2 * 20, 30, 16]),
        # Back: all channels of some pixels of a row, of 30 are these 10.
        (A72, (0, 3, 1, 2), [1 * 32 * 3, 20, 10]),
    ],
)
def test_a_line_of_the_last_axis_at_a_time(target, axes, loops):
    shape = (1, 32, 20, 30) if axes[1] == 2 else (1, 32, 30, 20)
    task, _ = change(shape, axes, target)
    schedule = tvm.s_tir.Schedule(task.mod)
    task.space.apply(schedule, task.space.default)
    (block,) = schedule.get_child_blocks(schedule.get_sblock("root"))
    found = [schedule.get(loop) for loop in schedule.get_loops(block)]
    kinds = tirx.ForKind
    assert [int(loop.extent) for loop in found] == loops
    assert [loop.kind for loop in found] == [kinds.PARALLEL, kinds.SERIAL, kinds.VECTORIZED]
    assert task.space.size == 1


def test_what_keeps_its_last_axis_is_one_loop():
    task, _ = change((2, 3, 4, 64), (0, 2, 1, 3))
    assert [knob.name for knob in task.space.knobs] == ["vectors"]


def test_few_elements_wake_no_thread():
    task, _ = change((1, 3, 8, 8), (0, 2, 3, 1))
    schedule = tvm.s_tir.Schedule(task.mod)
    task.space.apply(schedule, task.space.default)
    assert parallel_loops(schedule) == []
