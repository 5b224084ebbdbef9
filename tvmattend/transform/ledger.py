# SPDX-License-Identifier: Apache-2.0
"""What a lowered network costs outside of its arithmetic: launches, traffic, workspace."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tvmattend.expressions import op_name, static_shape
from tvmattend.transform.dataflow import Dataflow


@dataclass(frozen=True)
class Ledger:
    """The account of one lowered module.

    Attributes:
        kernel_launches: Calls of kernels in one inference.
        intermediate_bytes: Bytes that kernels write for and read from other kernels: each
            intermediate tensor once for its writer and once for every reader.
        workspace_bytes: The arena of intermediate tensors, and the largest scratch memory that a
            kernel takes on all of its threads.
    """

    kernel_launches: int
    intermediate_bytes: int
    workspace_bytes: int

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)


def keep_account(mod: Any, threads: int) -> Ledger:
    """Account for a module whose operators are kernels, scheduled or not.

    Args:
        mod: IRModule after FuseTIR; `main` is one dataflow block.
        threads: Threads of an inference, each with a scratch memory of its own.
    """
    flow = Dataflow(mod["main"])
    launches = [call for _, call in _launches(flow)]
    kernels = {call.args[0] for call in launches}
    scratch = max((scratch_bytes(mod[kernel], threads) for kernel in kernels), default=0)
    return Ledger(len(launches), _traffic(flow), _arena_bytes(mod) + scratch)


def lower_by_default(mod: Any) -> Any:
    """Lower a canonical module by TVM's own means: its legalizations and FuseOps, in NCHW.

    Args:
        mod: Canonical IRModule of `tvmattend.frontend`.
    """
    import tvm
    from tvm import relax

    passes = relax.transform
    return tvm.transform.Sequential([
        passes.LegalizeOps(),
        passes.AnnotateTIROpPattern(),
        passes.FoldConstant(),
        passes.FuseOps(),
        passes.FuseTIR(),
        passes.DeadCodeElimination(["main"]),
    ])(mod)


def _launches(flow: Dataflow) -> Iterator[tuple[Any, Any]]:
    yield from flow.calls("relax.call_tir")


def _traffic(flow: Dataflow) -> int:
    total = 0
    written = {variable for variable, _ in _launches(flow)}
    for variable, call in _launches(flow):
        if not flow.is_output(variable):
            total += _bytes(variable)
        arguments = list(call.args[1].fields)
        total += sum(_bytes(field) for field in arguments if field in written)
    return total


def _bytes(tensor: Any) -> int:
    import numpy as np

    shape = static_shape(tensor)
    if shape is None:
        raise ValueError(f"`{tensor.name}` has a dynamic shape; its bytes cannot be counted")
    return math.prod(shape) * np.dtype(str(tensor.ty.dtype.dtype)).itemsize


def _arena_bytes(mod: Any) -> int:
    """Bytes of the storages that TVM plans for intermediate and output tensors."""
    import tvm
    from tvm import relax

    passes = relax.transform
    planned = tvm.transform.Sequential([
        passes.RewriteDataflowReshape(),
        passes.ToNonDataflow(),
        passes.RemovePurityChecking(),
        passes.CallTIRRewrite(),
        passes.StaticPlanBlockMemory(),
    ])(mod)
    total = 0

    def visit(node: Any) -> None:
        nonlocal total
        if op_name(node) == "relax.memory.alloc_storage":
            total += math.prod(int(extent) for extent in node.args[0])

    relax.analysis.post_order_visit(planned["main"], visit)
    return total


def scratch_bytes(func: Any, threads: int) -> int:
    """Bytes of a kernel's own buffers; what is inside a parallel loop counts for every thread."""
    import tvm
    import tvm_ffi
    from tvm import s_tir, tirx

    passes = s_tir.transform
    compacted = tvm.transform.Sequential([
        passes.LowerInitBlock(),
        passes.PlanAndUpdateBufferAllocationLocation(),
        passes.ConvertBlocksToOpaque(),
        passes.CompactBufferAllocation(),
    ])(tvm.IRModule({"main": func}))["main"]
    total = _allocated(compacted.body)

    def visit(loop: Any) -> None:
        nonlocal total
        if loop.kind == tirx.ForKind.PARALLEL:
            total += (threads - 1) * _allocated(loop.body)

    tvm_ffi.structural_walk(compacted.body, (tirx.For, visit), order="post")
    return total


def _allocated(statement: Any) -> int:
    """Bytes of the buffers that a statement allocates."""
    import tvm
    import tvm_ffi
    from tvm import s_tir

    sizes: dict[Any, int] = {}

    def visit(block: Any) -> None:
        for buffer in block.alloc_buffers:
            elements = math.prod(int(extent) for extent in buffer.shape)
            sizes[buffer] = elements * tvm.DataType(str(buffer.dtype)).bits // 8

    tvm_ffi.structural_walk(statement, (s_tir.SBlock, visit), order="post")
    return sum(sizes.values())
