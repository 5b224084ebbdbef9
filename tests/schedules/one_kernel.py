# SPDX-License-Identifier: Apache-2.0
"""One kernel at a time: built from a Relax function, scheduled at a point, run on the host."""

import numpy as np
import torch
import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from tvmattend.codegen.intrinsics import use_vector_math
from tvmattend.target import parse_target
from tvmattend.transform.layout import CHANNELS
from tvmattend.transform.legalize import legalizations
from tvmattend.transform.pipeline import machine_of

HOST = parse_target("host")


def lowered(function, args, target=HOST):
    """Legalise and fuse the Relax function that `function(builder, *vars)` builds."""
    builder = relax.BlockBuilder()
    variables = [
        relax.Var(f"x{i}", relax.TensorType(a.shape, "float32")) for i, a in enumerate(args)
    ]
    with builder.function("main", variables):
        with builder.dataflow():
            out = builder.emit_output(function(builder, *variables))
        builder.emit_func_output(out)
    with target.to_tvm() as machine:
        del machine
        passes = relax.transform
        return tvm.transform.Sequential([
            passes.LegalizeOps(legalizations(machine_of(target.to_tvm()))),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
        ])(builder.get())


def run_point(task, point, arrays):
    """Schedule one kernel, compile it for the host and run it."""
    use_vector_math()
    schedule = s_tir.Schedule(task.mod)
    task.space.apply(schedule, point)
    library = tvm.compile(schedule.mod, target=HOST.to_tvm())
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    library["main"](*tensors)
    return tensors[-1].numpy()


def parallel_loops(schedule):
    """Extents of the parallel loops of a scheduled kernel."""
    found = []

    def visit(node):
        if node.kind == tirx.ForKind.PARALLEL:
            found.append(int(node.extent))

    tvm_ffi.structural_walk(schedule.mod["main"].body, (tirx.For, visit), order="post")
    return found


def relative(found, wanted):
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def constants(mod):
    """Weights that the kernel call of `main` is given, in order."""
    found = []

    def visit(node):
        if isinstance(node, tvm.ir.GenericConst) and hasattr(node.value, "numpy"):
            found.append(node.value.numpy())

    relax.analysis.post_order_visit(mod["main"], visit)
    return found


def convolution(layout, x, weight, stride, padding, groups, target=HOST):
    """Relax module of a convolution in one layout, and PyTorch's answer in the same layout."""
    data = torch.from_numpy(x)
    wanted = torch.nn.functional.conv2d(
        data, torch.from_numpy(weight), None, stride, padding, 1, groups
    )
    if layout == CHANNELS:
        data, wanted = data.permute(0, 2, 3, 1), wanted.permute(0, 2, 3, 1)
    array = np.ascontiguousarray(data.numpy())

    def function(builder, var):
        return relax.op.nn.conv2d(
            var,
            relax.const(weight),
            strides=stride,
            padding=padding,
            groups=groups,
            data_layout=layout,
            kernel_layout="OIHW",
        )

    return array, lowered(function, [array], target), np.ascontiguousarray(wanted.numpy())
