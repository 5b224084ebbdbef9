# SPDX-License-Identifier: Apache-2.0
"""Stages without a reduction: activations, sums, changes of layout."""

from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, Knob, Part
from schedules.stages import Stage

# Below this many elements waking a second thread costs more than the work (90 ns a cache line
# between the cores of a Raspberry Pi 4: nviennot/core-to-core-latency#44).
_SERIAL_ELEMENTS = 16 * 1024


def part(stage: Stage, machine: Machine) -> Part:
    """One loop over all elements, in vectors; its only choice is their length."""

    def schedule(sch: Any, choose: Choose) -> None:
        loops = sch.get_loops(sch.get_sblock(stage.out, func_name="main"))
        if not loops:
            return
        fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
        extent = int(sch.get(fused).extent)
        length = blocks.vector_length(extent, machine.lanes, choose("vectors"))
        if length > 1:
            fused, lane = sch.split(fused, [None, length])
            sch.vectorize(lane)
        if extent >= _SERIAL_ELEMENTS:
            sch.parallel(fused)

    return Part((Knob("vectors", (1, 2, 4), 1),), schedule)
