# SPDX-License-Identifier: Apache-2.0
"""Softmax with whatever follows it element by element: the gate of a DC-AC block.

    out = act(softmax over channels(a) * b)

All stages (maximum, exponential, sum, quotient) are computed for one row of pixels, or for one
pixel where channels lie innermost, while it is in the first-level cache.
"""

from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, DesignSpace, Knob

NAME = "softmax"
MAXIMUM, EXPONENTIAL, TOTAL = "T_softmax_maxelem", "T_softmax_exp", "T_softmax_expsum"


def applies(sch: Any) -> bool:
    """Whether the kernel holds TVM's softmax stages."""
    return {MAXIMUM, EXPONENTIAL, TOTAL} <= set(blocks.names(sch))


def space(sch: Any, machine: Machine) -> DesignSpace:
    """One point: the kernel is bound by the exponential and by memory, not by its loop order."""
    out_iters = sch.get(blocks.output(sch)).iter_vars
    total = sch.get(sch.get_sblock(TOTAL, func_name="main"))
    extents = [int(var.dom.extent) for var in out_iters]
    axis = _axis(sch, total)

    def schedule(sch: Any, choose: Choose) -> None:
        del choose
        blocks.inline_all_but(sch, (MAXIMUM, EXPONENTIAL, TOTAL))
        out = blocks.output(sch)
        loops = sch.get_loops(out)
        innermost = axis == len(extents) - 1
        outer = [loop for position, loop in enumerate(loops) if position != axis]
        outer = outer if innermost else outer[:-1]
        sch.reorder(*outer, loops[axis], *([] if innermost else loops[-1:]))
        job = sch.fuse(*outer) if len(outer) > 1 else outer[0]
        total, maximum = (sch.get_sblock(name, func_name="main") for name in (TOTAL, MAXIMUM))
        exponential = sch.get_sblock(EXPONENTIAL, func_name="main")
        # Consumers first: each stage goes to where it is used.
        partial_total = _lane_partials(sch, total, machine) if innermost else None
        partial_maximum = _lane_partials(sch, maximum, machine) if innermost else None
        for block in (total, partial_total, exponential, maximum, partial_maximum):
            if block is not None:
                sch.compute_at(block, job, preserve_unit_loops=True)
        sch.parallel(job)
        for block in (out, exponential):
            blocks.vectorize_innermost(sch, block, machine.lanes)
        for block in (total, maximum) if not innermost else (partial_total, partial_maximum):
            if block is not None:
                _vectorize_reduction(sch, block, machine, innermost)

    return DesignSpace(NAME, (Knob("rows", (1,), 1),), schedule)


def _axis(sch: Any, total: Any) -> int:
    """Position of the axis that is summed, from the region that the sum reads."""
    del sch
    reduced = {str(var.var.name) for var in total.iter_vars if int(var.iter_type) == blocks.REDUCED}
    region = total.reads[0].region
    for position, span in enumerate(region):
        if str(getattr(span.min, "name", "")) in reduced:
            return position
    raise ValueError("softmax without a reduced axis")


def _lane_partials(sch: Any, block: Any, machine: Machine) -> Any:
    """Split a reduction over the innermost axis into one partial result a lane.

    LLVM may not reorder a sum of floats by itself.
    """
    loop = sch.get_loops(block)[-1]
    length = blocks.vector_length(int(sch.get(loop).extent), machine.lanes, 1)
    if length == 1:
        return None
    _, lane = sch.split(loop, [None, length])
    return sch.rfactor(lane, len(sch.get(block).iter_vars) - 1)


def _vectorize_reduction(sch: Any, block: Any, machine: Machine, innermost: bool) -> None:
    """Lanes side by side, the reduced channels one after the other."""
    iters = list(sch.get(block).iter_vars)
    loops = sch.get_loops(block)[-len(iters) :]
    own = list(zip(loops, iters, strict=True))
    (channel,) = [loop for loop, var in own if int(var.iter_type) == blocks.REDUCED]
    kept = [loop for loop, var in own if int(var.iter_type) == blocks.SPATIAL]
    # A lane partial's new axis is the only kept one that is longer than the job's pixel.
    lane = max(kept, key=lambda loop: int(sch.get(loop).extent)) if innermost else kept[-1]
    if not innermost:
        length = blocks.vector_length(int(sch.get(lane).extent), machine.lanes, 1)
        _, lane = sch.split(lane, [None, length])
    sch.reorder(channel, lane)
    sch.vectorize(lane)
    init = sch.decompose_reduction(block, channel)
    sch.vectorize(sch.get_loops(init)[-1])
