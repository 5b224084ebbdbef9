# SPDX-License-Identifier: Apache-2.0
"""Means and extremes: whatever axes are kept, and whatever comes behind."""

import itertools

import numpy as np
import pytest
import torch
import tvm
from one_kernel import HOST, lowered, relative, run_point
from tvm import relax

from tvmattend.target import parse_target
from tvmattend.tuning.tasks import extract_tasks

AXES = [list(axes) for count in (1, 2, 3) for axes in itertools.combinations(range(4), count)]


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_means_over_any_axes(axes, behind, keep, threads):
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 16)).astype("float32")

    def function(builder, var):
        mean = relax.op.mean(var, axes, keepdims=keep)
        return relax.op.exp(builder.emit(mean)) if behind else mean

    target = parse_target("host", threads)
    (task,) = extract_tasks(lowered(function, [x], target), target)
    wanted = torch.from_numpy(x).mean(axes, keepdim=keep).numpy()
    wanted = np.exp(wanted) if behind else wanted
    found = run_point(task, task.space.default, [x, np.zeros_like(wanted)])
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("shape", "axes", "kernels"),
    [
        ((2, 4, 7, 56), [2, 3], 2),
        ((2, 4, 7, 56), [0, 2, 3], 3),
        ((2, 4, 7, 14), [2, 3], 1),
        ((2, 4, 7, 56), [1, 2], 1),
    ],
    ids=str,
)
def test_long_lines_are_added_up_last(shape, axes, kernels, keep):
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    mod = lowered(lambda _, var: relax.op.mean(var, axes, keepdims=keep), [x])
    assert len(extract_tasks(mod, HOST)) == kernels
    machine = relax.VirtualMachine(tvm.compile(mod, target=HOST.to_tvm()), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(x)).numpy()
    wanted = torch.from_numpy(x).mean(axes, keepdim=keep).numpy()
    assert found.shape == wanted.shape
    assert relative(found, wanted) < 1e-5
