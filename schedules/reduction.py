# SPDX-License-Identifier: Apache-2.0
"""Pools and means: one reduction, whose result is held in vectors of the innermost kept axis."""

import math
from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, Inner, Knob, Part
from schedules.stages import Stage


def part(stage: Stage, machine: Machine) -> Part:
    """How many vectors are reduced side by side."""

    def schedule(sch: Any, choose: Choose) -> None:
        _schedule(sch, stage, machine, choose("vectors"))

    def host(sch: Any, choose: Choose, inner: Inner) -> None:
        _schedule(sch, stage, machine, choose("vectors"), inner)

    return Part((Knob("vectors", (1, 2, 4), 2),), schedule, host=host)


def _schedule(
    sch: Any, stage: Stage, machine: Machine, vectors: int, inner: Inner | None = None
) -> None:
    block, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    kept = [
        loop
        for loop, var in zip(sch.get_loops(out), sch.get(out).iter_vars, strict=True)
        if int(var.iter_type) == blocks.SPATIAL
    ]
    jobs = kept[:-2] if len(kept) > 2 else kept[:1]
    if (
        inner is not None
        and math.prod(int(sch.get(loop).extent) for loop in jobs) % machine.threads
    ):
        # What it brings is too much work for jobs that do not share out evenly.
        half, _ = sch.split(kept[-2], [blocks.divisors(int(sch.get(kept[-2]).extent), 2)[-1], None])
        jobs = [*jobs, half]
    job = sch.fuse(*jobs) if len(jobs) > 1 else jobs[0]
    if stage.out != stage.anchor:
        sch.compute_at(block, job, preserve_unit_loops=True)
        if len(kept) > 1:  # else its only axis is the jobs'
            blocks.vectorize_innermost(sch, out, machine.lanes)
    for name in stage.pads:
        pad = sch.get_sblock(name, func_name="main")
        sch.compute_at(pad, job, preserve_unit_loops=True)
        blocks.vectorize_innermost(sch, pad, machine.lanes)
    finish = inner(job) if inner is not None else None
    sch.parallel(job)
    if len(kept) > 1:  # else the only kept axis is the jobs' own
        _hold_in_registers(sch, block, machine, vectors)
    if finish is not None:
        finish()


def _hold_in_registers(sch: Any, block: Any, machine: Machine, vectors: int) -> None:
    # TE orders a block's loops: kept axes first, reduced ones last.
    count = sum(int(var.iter_type) == blocks.REDUCED for var in sch.get(block).iter_vars)
    loops = sch.get_loops(block)
    reduced, lane = loops[-count:], loops[-count - 1]
    extent = int(sch.get(lane).extent)
    length = blocks.vector_length(extent, machine.lanes, vectors)
    if length > 1:
        lane_out, lane_in = sch.split(lane, [None, length])
        sch.reorder(lane_out, *reduced, lane_in)
        sch.vectorize(lane_in)
    init = sch.decompose_reduction(block, reduced[0])
    if length > 1:
        sch.vectorize(sch.get_loops(init)[-1])
