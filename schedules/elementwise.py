# SPDX-License-Identifier: Apache-2.0
"""Kernels without a reduction (activations, sums, layout changes), and those of no known family."""

from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, DesignSpace, Knob

NAME = "elementwise"
PLAIN = "plain"

# Below this many elements waking a second thread costs more than the work (90 ns a cache line
# between the cores of a Raspberry Pi 4: nviennot/core-to-core-latency#44).
_SERIAL_ELEMENTS = 16 * 1024


def space(sch: Any, machine: Machine) -> DesignSpace:
    """One loop over all elements, in vectors; its only choice is their length."""
    del sch

    def schedule(sch: Any, choose: Choose) -> None:
        blocks.inline_all_but(sch, ())
        out = blocks.output(sch)
        loops = sch.get_loops(out)
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

    return DesignSpace(NAME, (Knob("vectors", (1, 2, 4), 1),), schedule)


def plain_space() -> DesignSpace:
    """A kernel of no known family runs as it is written: correct, not fast."""

    def schedule(sch: Any, choose: Choose) -> None:
        del sch, choose

    return DesignSpace(PLAIN, (Knob("as_written", (1,), 1),), schedule)
