# SPDX-License-Identifier: Apache-2.0
"""Lowered IRModule -> tuning tasks: one a distinct kernel, with how often the network calls it."""

from dataclasses import dataclass, replace
from typing import Any

from schedules import DesignSpace, space_for
from tvmattend.target import TargetSpec


@dataclass(frozen=True)
class Task:
    """One kernel to tune.

    Attributes:
        name: The PrimFunc's name in the lowered module, e.g. `fused_conv2d_add_silu`.
        key: Hexadecimal structural hash of `mod`; the same kernel has the same key in every run.
        mod: An IRModule whose only function is the PrimFunc, called `main`.
        space: Its design space for the target.
        weight: Number of calls in one inference.
        flops: Floating-point operations of one call.
    """

    name: str
    key: str
    mod: Any
    space: DesignSpace
    weight: int
    flops: float


def extract_tasks(lowered: Any, target: TargetSpec) -> list[Task]:
    """Every distinct kernel of a network, in the order of its first call.

    Args:
        lowered: IRModule from `tvmattend.transform.lower`.
        target: The target that it was lowered for.
    """
    from tvm.s_tir.analysis import estimate_tir_flops

    machine = target.to_tvm()
    tasks: dict[str, Task] = {}
    for name in kernel_calls(lowered):
        mod = kernel_module(lowered[name])
        key = workload_key(mod)
        if key in tasks:
            tasks[key] = replace(tasks[key], weight=tasks[key].weight + 1)
            continue
        space = space_for(mod, machine)
        tasks[key] = Task(name, key, mod, space, 1, float(estimate_tir_flops(mod)))
    return list(tasks.values())


def kernel_calls(lowered: Any) -> list[str]:
    """Names of the PrimFuncs that `main` calls, one entry a call, in order."""
    from tvm import relax

    names: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.call_tir":
            names.append(str(node.args[0].name_hint))

    relax.analysis.post_order_visit(lowered["main"], visit)
    return names


def kernel_module(func: Any) -> Any:
    """An IRModule that holds one PrimFunc under the name `main`."""
    import tvm

    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


def workload_key(mod: Any) -> str:
    """Hexadecimal structural hash: the same for the same computation, whatever its names."""
    import tvm_ffi

    return f"{tvm_ffi.structural_hash(mod) & 0xFFFFFFFFFFFFFFFF:016x}"
