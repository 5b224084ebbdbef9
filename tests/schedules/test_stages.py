# SPDX-License-Identifier: Apache-2.0
"""What a fused kernel keeps and what it computes where it is read."""

from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from one_kernel import HOST, relative, run_point
from tvm import te, tirx

from schedules import stages
from schedules.machines import X86_64_V4
from schedules.registry import space_for
from tvmattend.tuning.tasks import kernel_module


def chain(last_shape, last):
    """x [1, 8, 6, 6] -> exp -> what `last` makes of it, as one kernel."""
    x = te.placeholder((1, 8, 6, 6), name="x")
    costly = te.compute(x.shape, lambda *at: tirx.exp(x[at]), name="costly")
    result = te.compute(last_shape, lambda *at: last(costly, *at), name="result")
    return kernel_module(te.create_prim_func([x, result]))


def upsample(source, n, c, y, x):
    return source[n, c, y // 2, x // 2]


def shift(source, *at):
    return source[at] + 1


@pytest.mark.parametrize(
    ("shape", "last", "kept"),
    [
        ((1, 8, 12, 12), upsample, ["costly", "result"]),
        ((1, 8, 6, 6), shift, ["result"]),
        # One pixel of each map: fewer elements than there are, none of them twice.
        ((1, 8, 3, 3), lambda source, n, c, y, x: source[n, c, 2 * y, 2 * x] * 2, ["result"]),
    ],
    ids=["a resize", "a sum", "a subsample"],
)
def test_what_would_be_computed_again_is_kept(shape, last, kept):
    schedule = tvm.s_tir.Schedule(chain(shape, last))
    found, _ = stages.cut(schedule, X86_64_V4)
    assert [stage.out for stage in found] == kept


def test_a_resize_behind_an_exponential_computes_the_same():
    mod = chain((1, 8, 12, 12), upsample)
    space = space_for(mod, HOST.to_tvm())
    assert space.kernel == "2*elementwise"
    x = np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype("float32")
    wanted = np.exp(x).repeat(2, axis=2).repeat(2, axis=3)

    task = SimpleNamespace(mod=mod, space=space)
    assert relative(run_point(task, space.default, [x, np.zeros_like(wanted)]), wanted) < 1e-6
