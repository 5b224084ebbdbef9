# SPDX-License-Identifier: Apache-2.0
"""What each kernel of a network computes, and which PyTorch modules it comes from.

Passes rename variables, and equal kernels become one PrimFunc, so neither names the module that a
call belongs to. The weights do: a constant keeps its memory from the phase that packs it to the
last one, and as long as a phase keeps a variable's name, the constants of its call are known to be
that module's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvmattend.target import TargetSpec


@dataclass(frozen=True)
class KernelFact:
    """One call of a kernel.

    Attributes:
        name: The PrimFunc.
        key: The kernel's identity (`Task.key`).
        flops: Floating-point operations that the kernel executes in a call, as TVM counts them.
        moved: Bytes of its inputs, weights and output.
        modules: Paths of the PyTorch modules; empty for a kernel that the compiler put in.
    """

    name: str
    key: str
    flops: float
    moved: int
    modules: tuple[str, ...]


def kernel_facts(
    stages: Sequence[Any], module_paths: Mapping[str, str], target: TargetSpec
) -> list[KernelFact]:
    """Describe every kernel call of a network, in the order of the calls.

    Args:
        stages: The module after each phase, the canonical one first (`Lowered.stages`).
        module_paths: The canonical module's variables' PyTorch modules.
        target: What it was lowered for.
    """
    from tvmattend.tuning.tasks import extract_tasks, kernel_module, workload_key

    lowered = stages[-1]
    tasks = {task.key: task for task in extract_tasks(lowered, target)}
    owners = _owners(stages, module_paths)
    by_operator = _by_operator(stages[0], module_paths)
    calls = list(_kernel_calls(lowered))
    bases = [name.rstrip("0123456789") for _, name, _ in calls]
    facts = []
    for place, (variable, name, constants) in enumerate(calls):
        key = workload_key(kernel_module(lowered[name]))
        paths = [owners[address] for address in constants if address in owners]
        if not paths and variable in module_paths:
            paths = [module_paths[variable]]
        same = by_operator.get(bases[place], [])
        if not paths and len(same) == bases.count(bases[place]):
            # A kernel of one operator without weights, renamed on the way: the n-th is the n-th.
            paths = [same[bases[:place].count(bases[place])]]
        moved = _moved(lowered[name])
        facts.append(KernelFact(name, key, tasks[key].flops, moved, _modules(paths)))
    return facts


def _moved(func: Any) -> int:
    """Bytes of all buffers that a PrimFunc is given, each counted once."""
    from math import prod

    import numpy as np

    return sum(
        prod(int(extent) for extent in param.shape) * np.dtype(str(param.dtype)).itemsize
        for param in func.params
    )


def _owners(stages: Iterable[Any], module_paths: Mapping[str, str]) -> dict[int, str]:
    """Address of each constant -> path of the module that it was last seen with."""
    owners = {}
    for stage in stages:
        for binding in _all_bindings(stage):
            if binding.var.name in module_paths:
                for address in _constants(binding.value):
                    owners[address] = module_paths[binding.var.name]
    return owners


def _by_operator(canonical: Any, module_paths: Mapping[str, str]) -> dict[str, list[str]]:
    """Short name of each operator -> the modules of its calls, in order."""
    found: dict[str, list[str]] = {}
    for binding in _bindings(canonical):
        name = str(getattr(getattr(binding.value, "op", None), "name", ""))
        path = module_paths.get(binding.var.name, "")
        found.setdefault(name.rpartition(".")[2], []).append(path)
    return found


def _kernel_calls(lowered: Any) -> Iterable[tuple[str, str, list[int]]]:
    """Variable, PrimFunc and addresses of the constants of each kernel call."""
    for binding in _bindings(lowered):
        value = binding.value
        if getattr(getattr(value, "op", None), "name", "") == "relax.call_tir":
            yield binding.var.name, str(value.args[0].name_hint), _constants(value)


def _bindings(module: Any) -> Iterable[Any]:
    for block in module["main"].body.blocks:
        yield from block.bindings


def _all_bindings(module: Any) -> Iterable[Any]:
    """Those of `main`, and of the functions into which a fusion rule moved some of them."""
    from tvm import relax

    for _, function in module.functions_items():
        if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
            for block in function.body.blocks:
                yield from block.bindings


def _constants(value: Any) -> list[int]:
    import numpy as np
    from tvm import relax
    from tvm.ir import GenericConst

    if not isinstance(value, relax.Call):
        return []
    arguments = [
        field
        for argument in value.args
        for field in (argument.fields if isinstance(argument, relax.Tuple) else [argument])
    ]
    return [
        int(np.from_dlpack(field.value).ctypes.data)
        for field in arguments
        if isinstance(field, GenericConst)
    ]


def _modules(paths: Sequence[str]) -> tuple[str, ...]:
    """Join the parts of one module, e.g. its convolution and its BatchNorm, into its path."""
    distinct = list(dict.fromkeys(paths))
    parents = [path.rpartition(".")[0] for path in distinct]
    joined = [
        parent if parent and parents.count(parent) > 1 else path
        for path, parent in zip(distinct, parents, strict=True)
    ]
    return tuple(dict.fromkeys(joined))
