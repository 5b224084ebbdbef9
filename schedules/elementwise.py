# SPDX-License-Identifier: Apache-2.0
"""Stages without a reduction: activations, sums, changes of layout."""

import math
from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, Knob, Part
from schedules.stages import Stage

# Below this many elements waking a second thread costs more than the work (90 ns a cache line
# between the cores of a Raspberry Pi 4: nviennot/core-to-core-latency#44).
_SERIAL_ELEMENTS = 16 * 1024

# Elements that a loop has, at most, of which LLVM makes vectors.
_ROUND = 4096

# Numbers that lie side by side where they are written, and are read a map or a pixel apart: a cache
# line of them. More would be more streams than a prefetcher follows; of fewer each line that is
# written would be fetched several times.
_STREAMS = 16


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """One loop over all elements, in vectors, whose length is a choice; none in a change of layout.

    Where vectors do not divide the innermost axis, their elements would lie on two lines of it, and
    each have an address of its own. LLVM's loops, which count along the lines, are several times
    as quick (benchmarks/NOTES.md).

    A change of layout goes through what it reads in order, a cache line of the last axis that it
    writes at a time.
    """
    if _turned(sch, stage):
        return Part((), lambda sch, _: _turn(sch, stage, machine))

    loops = sch.get_loops(sch.get_sblock(stage.out, func_name="main"))
    if not loops:
        return Part((), lambda _sch, _choose: None)
    line = int(sch.get(loops[-1]).extent)
    if line % machine.lanes:
        return Part((), lambda sch, _: _lines(sch, stage))

    def schedule(sch: Any, choose: Choose) -> None:
        loops = sch.get_loops(sch.get_sblock(stage.out, func_name="main"))
        elements = _elements(sch, loops)
        length = blocks.vector_length(line, machine.lanes, choose("vectors"))
        jobs, lane = sch.split(_fused(sch, loops), [None, length])
        sch.vectorize(lane)
        _share_out(sch, jobs, elements)

    return Part((Knob("vectors", (1, 2, 4), 1),), schedule)


def _lines(sch: Any, stage: Stage) -> None:
    """As many of the inner axes as make a round of LLVM's; the outer ones are the jobs."""
    loops = sch.get_loops(sch.get_sblock(stage.out, func_name="main"))
    inner = 1
    while inner < len(loops) and _elements(sch, loops[-inner - 1 :]) <= _ROUND:
        inner += 1
    elements = _elements(sch, loops)
    _fused(sch, loops[-inner:])
    if loops[:-inner]:
        _share_out(sch, _fused(sch, loops[:-inner]), elements)


def _share_out(sch: Any, jobs: Any, elements: int) -> None:
    if elements >= _SERIAL_ELEMENTS:
        sch.parallel(jobs)


def _fused(sch: Any, loops: list[Any]) -> Any:
    return sch.fuse(*loops) if len(loops) > 1 else loops[0]


def _elements(sch: Any, loops: list[Any]) -> int:
    return math.prod(int(sch.get(loop).extent) for loop in loops)


def _turned(sch: Any, stage: Stage) -> list[int]:
    """The axes of a stage in the order of a map that it reads along another axis; else nothing."""
    block = sch.get(sch.get_sblock(stage.out, func_name="main"))
    axes = [var.var for var in block.iter_vars]
    for read in block.reads:
        indices = [axis.min for axis in read.region]
        order = [place for index in indices for place, var in enumerate(axes) if index.same_as(var)]
        if len(order) == len(indices) == len(axes) > 1 and order[-1] != len(axes) - 1:
            return order
    return []


def _turn(sch: Any, stage: Stage, machine: Machine) -> None:
    order = _turned(sch, stage)
    loops = sch.get_loops(sch.get_sblock(stage.out, func_name="main"))
    elements = _elements(sch, loops)
    widest = max(1, _STREAMS // machine.lanes)
    length = blocks.tile_length(int(sch.get(loops[-1]).extent), machine.lanes, widest)
    loops[-1], lane = sch.split(loops[-1], [None, length])
    loops = [loops[place] for place in order]
    sch.reorder(*loops, lane)
    sch.vectorize(lane)
    if elements >= _SERIAL_ELEMENTS:
        sch.parallel(sch.fuse(*loops[:-1]))
