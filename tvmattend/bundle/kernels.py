# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of the kernels: what they compute, their schedules, who calls them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tvmattend.bundle.fields import malformed, number, only, optional, take, whole, words


@dataclass(frozen=True)
class RecordCounts:
    """Kernels of the library by where their schedule comes from.

    Attributes:
        measured: Tuned by time taken on the target's silicon.
        estimated: Tuned by a model of the machine.
        emulated: Tuned on an emulated board, whose times say nothing about silicon.
        default: No record: scheduled by rule.
    """

    measured: int = 0
    estimated: int = 0
    emulated: int = 0
    default: int = 0

    @classmethod
    def from_json(cls, data: Any, where: str = "records") -> "RecordCounts":
        """Read `records`."""
        only(data, cls, where)
        return cls(*(whole(data, item.name, where, least=0) for item in fields(cls)))


@dataclass(frozen=True)
class KernelSchedule:
    """One kernel of the library: what a call computes, and which schedule it was compiled with.

    Fields as in `tvmattend.codegen.schedule.ScheduledKernel` and, for the operations and the bytes
    of a call, `tvmattend.codegen.kernel_facts.KernelFact`.
    """

    name: str
    key: str
    family: str
    calls: int
    origin: str
    threads: int | None
    point: Mapping[str, int]
    flops: float
    moved: int

    @classmethod
    def from_json(cls, data: Any, where: str) -> "KernelSchedule":
        """Read one entry of `kernels`."""
        only(data, cls, where)
        origin = take(data, "origin", str, where)
        if origin not in {item.name for item in fields(RecordCounts)}:
            raise malformed(f"{where}.origin", "measured, estimated, emulated or default")
        if (data["threads"] is None) != (origin == "default"):
            raise malformed(f"{where}.threads", "the record's threads, or null without a record")
        point = take(data, "point", dict, where)
        name, key, family = (take(data, word, str, where) for word in ("name", "key", "family"))
        threads = optional(data, "threads", lambda _: whole(data, "threads", where))
        knobs = {knob: take(point, knob, int, f"{where}.point") for knob in point}
        calls, moved = whole(data, "calls", where), whole(data, "moved", where, least=0)
        flops = number(take(data, "flops", (int, float), where), f"{where}.flops")
        return cls(name, key, family, calls, origin, threads, knobs, flops, moved)


@dataclass(frozen=True)
class KernelLaunch:
    """One call of a kernel in an inference.

    Attributes:
        name: The PrimFunc, as the library's symbols and profiles have it.
        key: Of the kernel, among `kernels`.
        modules: Paths of the PyTorch modules; empty for a kernel that the compiler put in.
    """

    name: str
    key: str
    modules: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Any, where: str) -> "KernelLaunch":
        """Read one entry of `launches`."""
        only(data, cls, where)
        name, key = (take(data, word, str, where) for word in ("name", "key"))
        return cls(name, key, words(data["modules"], f"{where}.modules"))
