# SPDX-License-Identifier: Apache-2.0
"""Lowered IRModule + tuning records -> IRModule whose every kernel is scheduled."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvmattend.target import TargetSpec
from tvmattend.tuning.records import RecordSet
from tvmattend.tuning.tasks import Task, extract_tasks, kernel_module, workload_key


@dataclass(frozen=True)
class ScheduledKernel:
    """Where one kernel's schedule came from.

    Attributes:
        name: The PrimFunc.
        key: The kernel's identity (`Task.key`), by which records are found.
        family: The design space's family.
        calls: Calls in one inference.
        origin: `measured`, `estimated`, `emulated`, or `default` for the space's default point.
        threads: Threads of the record; None for the default.
        point: The value of every knob of the space, from the record or the space's default.
    """

    name: str
    key: str
    family: str
    calls: int
    origin: str
    threads: int | None
    point: Mapping[str, int]


@dataclass(frozen=True)
class ScheduledModule:
    """The scheduled IRModule and the account of it."""

    mod: Any
    kernels: tuple[ScheduledKernel, ...]

    def origins(self) -> dict[str, int]:
        """Number of distinct kernels by origin."""
        return dict(Counter(kernel.origin for kernel in self.kernels))


def schedule_kernels(lowered: Any, target: TargetSpec, records: RecordSet) -> ScheduledModule:
    """Apply the best record of every kernel, or its space's default point.

    A record whose point is no longer in the kernel's space is passed over.
    """
    import tvm

    tasks = extract_tasks(lowered, target)
    scheduled: dict[str, Any] = {}
    kernels = []
    for task in tasks:
        func, kernel = _schedule(task, target, records)
        scheduled[task.key] = func
        kernels.append(kernel)
    functions = {}
    for gvar, func in lowered.functions_items():
        if isinstance(func, tvm.tirx.PrimFunc):
            key = workload_key(kernel_module(func))
            done = scheduled[key].with_attr("global_symbol", gvar.name_hint)
            functions[gvar] = done
        else:
            functions[gvar] = func
    mod = tvm.IRModule(functions, attrs=lowered.attrs)
    return ScheduledModule(mod, tuple(kernels))


def _schedule(task: Task, target: TargetSpec, records: RecordSet) -> tuple[Any, ScheduledKernel]:
    from tvm import s_tir

    record = records.best(task.key, target.num_cores, task.space.accepts)
    sch = s_tir.Schedule(task.mod)
    point = task.space.default if record is None else record.point
    task.space.apply(sch, point)
    origin, threads = ("default", None) if record is None else (record.origin, record.threads)
    kernel = ScheduledKernel(
        task.name, task.key, task.space.kernel, task.weight, origin, threads, dict(point)
    )
    return sch.mod["main"], kernel
