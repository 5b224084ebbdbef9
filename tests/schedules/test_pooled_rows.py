# SPDX-License-Identifier: Apache-2.0
"""A convolution within the jobs of the pool that reads it; run here with Arm's four lanes."""

import numpy as np
import pytest
import torch
from one_kernel import constants, parallel_loops, relative, run_point
from tvm import relax, s_tir

from schedules.pooled_rows import KNOB
from tvmattend.target import parse_target
from tvmattend.transform.fuse_convolution_pool import FuseConvolutionPool
from tvmattend.transform.ledger import scratch_bytes
from tvmattend.transform.pipeline import phases
from tvmattend.tuning.tasks import extract_tasks


def kernel(size=(12, 28), window=2, stride=2, threads=1, batch=1, features=40, target="cortex-a72"):
    """The task of pool(silu(conv(x))), its arguments, and what PyTorch makes of it."""
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, 32, *size)).astype("float32")
    weight = random.standard_normal((features, 32, 1, 1)).astype("float32")
    builder = relax.BlockBuilder()
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    var = relax.Var("x", relax.TensorType(channels_last.shape, "float32"))
    with builder.function("main", [var]):
        with builder.dataflow():
            conv = relax.op.nn.conv2d(var, relax.const(weight), data_layout="NHWC")
            found = builder.emit(relax.op.nn.silu(builder.emit(conv)))
            pool = relax.op.nn.avg_pool2d(found, window, stride, layout="NHWC")
            out = builder.emit_output(pool)
        builder.emit_func_output(out)
    spec = parse_target(target, threads)
    mod = relax.transform.CanonicalizeBindings()(builder.get())
    with spec.to_tvm():
        for name, phase in phases(spec, [FuseConvolutionPool(stem=False)]):
            mod = mod if name == "layout" else phase(mod)
    (task,) = extract_tasks(mod, spec)
    silu = torch.nn.functional.silu(
        torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight))
    )
    wanted = torch.nn.functional.avg_pool2d(silu, window, stride).numpy()
    return task, channels_last, constants(mod), np.ascontiguousarray(wanted.transpose(0, 2, 3, 1))


def jobs(task, choice):
    """Extents of the parallel loops of the scheduled kernel, and its scratch bytes."""
    schedule = s_tir.Schedule(task.mod)
    task.space.apply(schedule, {**task.space.default, KNOB: choice})
    return parallel_loops(schedule), scratch_bytes(schedule.mod["main"], 1)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("size", "window", "batch"), [((12, 28), 2, 1), ((6, 14), 2, 2), ((9, 21), 3, 1)]
)
def test_same_numbers(size, window, batch, threads):
    task, x, weights, wanted = kernel(size, window, window, threads, batch)
    assert task.space.default[KNOB] == 1
    for choice in (0, 1):
        point = {**task.space.default, KNOB: choice}
        found = run_point(task, point, [x, *weights, np.zeros_like(wanted)])
        assert relative(found, wanted) < 1e-5


def test_the_map_in_front_of_the_pool_is_two_rows():
    task, *_ = kernel()
    (apart, whole), (together, rows) = jobs(task, 0), jobs(task, 1)
    assert len(apart) > len(together) == 1
    assert whole - rows >= 4 * 40 * 28 * (12 - 2)


@pytest.mark.parametrize(("threads", "found"), [(1, [6]), (2, [6]), (4, [12])])
def test_rows_are_halved_where_they_do_not_share_out_evenly(threads, found):
    task, *_ = kernel(threads=threads)
    assert jobs(task, 1)[0] == found


def test_sums_whose_jobs_are_features_end_within_the_pool():
    task, x, weights, wanted = kernel(features=320, size=(10, 12), threads=4)
    assert task.space.default["0.job_rows"] == 0
    extents, _ = jobs(task, 1)
    assert extents[-1] == 10
    assert len(extents) == len(jobs(task, 0)[0]) - 1
    found = run_point(task, task.space.default, [x, *weights, np.zeros_like(wanted)])
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize(
    "odd",
    [
        {"window": 3, "stride": 2, "size": (13, 29)},  # rows of two windows
        {"size": (13, 28)},  # a row of none
        {"target": "llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v3"},
    ],
)
def test_where_it_is_not_done(odd):
    assert KNOB not in kernel(**odd)[0].space.default
