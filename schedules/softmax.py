# SPDX-License-Identifier: Apache-2.0
"""Softmax with whatever follows it element by element: the gate of a DC-AC block.

    out = act(softmax over channels(a) * b)

All stages (maximum, exponential, sum, quotient) are computed for one row of pixels, or for one
pixel where channels lie innermost, while it is in the first-level cache.
"""

from collections.abc import Callable
from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, Part
from schedules.stages import Softmax, Stage


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """One point: the kernel is bound by the exponential and by memory, not by its loop order."""
    softmax = stage.softmax
    assert softmax is not None  # noqa: S101  (the registry asks for this family by the softmax)
    axis = _axis(sch.get(sch.get_sblock(softmax.total, func_name="main")))

    def schedule(sch: Any, choose: Choose) -> None:
        del choose
        out = sch.get_sblock(stage.out, func_name="main")
        loops = sch.get_loops(out)
        innermost = axis == len(loops) - 1
        outer = [loop for position, loop in enumerate(loops) if position != axis]
        outer = outer if innermost else outer[:-1]
        sch.reorder(*outer, loops[axis], *([] if innermost else loops[-1:]))
        job = sch.fuse(*outer) if len(outer) > 1 else outer[0]
        finish = place_rows(sch, softmax, job, machine, innermost=innermost)
        sch.parallel(job)
        blocks.vectorize_innermost(sch, out, machine.lanes)
        finish()

    return Part((), schedule)


def place_rows(
    sch: Any, softmax: Softmax, loop: Any, machine: Machine, *, innermost: bool
) -> Callable[[], None]:
    """Compute the blocks of a softmax under a loop of the block that finishes it.

    Args:
        sch: The schedule.
        softmax: Its blocks.
        loop: Over rows of pixels, or over pixels where channels lie innermost.
        machine: Lanes of the core.
        innermost: Whether the softmax runs over the innermost axis.

    Returns:
        What vectorises the reductions; called after the jobs are made parallel, since TVM makes no
        loop parallel over a reduction whose start is a block of its own.
    """
    total, maximum, exponential = (
        sch.get_sblock(name, func_name="main")
        for name in (softmax.total, softmax.maximum, softmax.exponential)
    )
    partial_total = _lane_partials(sch, total, machine) if innermost else None
    partial_maximum = _lane_partials(sch, maximum, machine) if innermost else None
    # Consumers first: each stage goes to where it is used.
    for block in (total, partial_total, exponential, maximum, partial_maximum):
        if block is not None:
            sch.compute_at(block, loop, preserve_unit_loops=True)
    blocks.vectorize_innermost(sch, exponential, machine.lanes)

    def finish() -> None:
        for block in (partial_total, partial_maximum) if innermost else (total, maximum):
            if block is not None:
                _vectorize_reduction(sch, block, machine, innermost)

    return finish


def _axis(total: Any) -> int:
    """Position of the axis that is summed, from the region that the sum reads."""
    reduced = {str(var.var.name) for var in total.iter_vars if int(var.iter_type) == blocks.REDUCED}
    for position, span in enumerate(total.reads[0].region):
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
