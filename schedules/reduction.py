# SPDX-License-Identifier: Apache-2.0
"""Pools and means: one reduction, whose result is held in vectors of the innermost kept axis."""

from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, DesignSpace, Knob

NAME = "reduction"


def reduction_blocks(sch: Any) -> list[str]:
    """Names of the blocks under the root that reduce."""
    found = []
    for name in blocks.names(sch):
        iters = sch.get(sch.get_sblock(name, func_name="main")).iter_vars
        if any(int(var.iter_type) == blocks.REDUCED for var in iters):  # IterVar::kCommReduce
            found.append(name)
    return found


def space(sch: Any, machine: Machine) -> DesignSpace:
    """How many vectors are reduced side by side."""
    (name,) = reduction_blocks(sch)
    producers = _stages_before(sch, name)

    def schedule(sch: Any, choose: Choose) -> None:
        pads = [producer for producer in producers if "pad" in producer]
        blocks.inline_all_but(sch, (name, *pads))
        block, out = sch.get_sblock(name, func_name="main"), blocks.output(sch)
        separate = str(sch.get(out).name_hint) != name
        loops = sch.get_loops(out)
        kept = [
            loop
            for loop, var in zip(loops, sch.get(out).iter_vars, strict=False)
            if int(var.iter_type) == blocks.SPATIAL
        ]
        job = sch.fuse(*kept[:-2]) if len(kept) > 2 else kept[0]
        if separate:
            sch.compute_at(block, job, preserve_unit_loops=True)
            blocks.vectorize_innermost(sch, out, machine.lanes)
        for pad in pads:
            stage = sch.get_sblock(pad, func_name="main")
            sch.compute_at(stage, job, preserve_unit_loops=True)
            blocks.vectorize_innermost(sch, stage, machine.lanes)
        sch.parallel(job)
        if len(kept) > 1:  # else the only kept axis is the jobs' own
            _hold_in_registers(sch, block, machine, choose("vectors"))

    return DesignSpace(NAME, (Knob("vectors", (1, 2, 4), 2),), schedule)


def _stages_before(sch: Any, name: str) -> list[str]:
    seen: list[str] = []
    for block in blocks.names(sch):
        if block == name:
            break
        seen.append(block)
    return seen


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
