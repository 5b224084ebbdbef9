# SPDX-License-Identifier: Apache-2.0
"""Softmax with whatever follows it element by element: the gate of a DC-AC block.

    m = max over k of x[k];  e[k] = exp(x[k] - m);  t = 1 / (sum over k of e[k])
    out = act(e * t * features)

One division a pixel: a Cortex-A72's divider takes over twenty cycles a vector, as long as `exp`.
Where pixels are innermost they are one line, rows behind one another, which is cut into tiles of a
few vectors; where channels are innermost a tile is a pixel. All channels of a tile stay in the
first-level cache between the stages.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, Part
from schedules.stages import Softmax, Stage

NAME = blocks.SOFTMAX

# Registers of a tile: as many sums run side by side as hide the latency of an addition.
_SIDE_BY_SIDE = 8


def softmax(x: Any, axis: int) -> Any:
    """The computation.

    Args:
        x: te.Tensor of a static shape.
        axis: What is summed over; not negative.

    Returns:
        te.Tensor like x.
    """
    from tvm import te, tirx

    shape = [int(extent) for extent in x.shape]
    before, depth, after = shape[:axis], shape[axis], shape[axis + 1 :]
    # The axes behind the sum are one line.
    line = [math.prod(after)] if after else []

    def at(outer: Any, k: Any, q: Any) -> Any:
        return x[(*outer, k, *_unravel(q[0], after))] if q else x[(*outer, k)]

    def reduced(name: str, combine: Any, value: Any) -> Any:
        k = te.reduce_axis((0, depth), "k")

        def compute(*index: Any) -> Any:
            return combine(value(index[:axis], k, index[axis:]), axis=[k])

        return te.compute((*before, *line), compute, name=f"{NAME}_{name}")

    most = reduced("max", te.max, at)
    exponential = te.compute(
        (*before, depth, *line),
        lambda *i: tirx.exp(
            at(i[:axis], i[axis], i[axis + 1 :]) - most[(*i[:axis], *i[axis + 1 :])]
        ),
        name=f"{NAME}_exp",
    )
    total = reduced("sum", te.sum, lambda outer, k, q: exponential[(*outer, k, *q)])
    one = tirx.const(1.0, x.dtype)
    inverse = te.compute(
        (*before, *line), lambda *index: one / total[index], name=f"{NAME}_inverse"
    )

    def quotient(*index: Any) -> Any:
        outer, k, inner = index[:axis], index[axis], index[axis + 1 :]
        q = [_ravel(inner, after)] if after else []
        return exponential[(*outer, k, *q)] * inverse[(*outer, *q)]

    return te.compute(shape, quotient, name=f"{NAME}_quotient")


def _unravel(q: Any, shape: Sequence[int]) -> list[Any]:
    index: list[Any] = []
    for extent in shape[:0:-1]:
        index.insert(0, q % extent)
        q = q // extent
    return [q, *index]


def _ravel(index: Sequence[Any], shape: Sequence[int]) -> Any:
    q = index[0]
    for position, extent in zip(index[1:], shape[1:], strict=True):
        q = q * extent + position
    return q


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
        if innermost:
            job = sch.fuse(*loops[:-1]) if axis > 1 else loops[0]
        else:
            straighten(sch, out, axis)
            *outer, channel, line = sch.get_loops(out)
            tile, lane = split_line(sch, line, machine)
            sch.reorder(*outer, tile, channel, lane)
            job = sch.fuse(*outer, tile) if outer else tile
        finish = place_rows(sch, softmax, job, machine, innermost=innermost)
        sch.parallel(job)
        blocks.vectorize_innermost(sch, out, machine.lanes)
        finish()

    return Part((), schedule)


def straighten(sch: Any, out: Any, axis: int = 1) -> None:
    """Make the axes behind the channels of the finished map, its rows, one line of pixels."""
    from tvm.tirx import IndexMap

    loops = sch.get_loops(out)
    extents = [int(sch.get(loop).extent) for loop in loops[axis + 1 :]]

    def straight(*index: Any) -> list[Any]:
        return [*index[: axis + 1], _ravel(index[axis + 1 :], extents)]

    if len(extents) > 1:
        sch.transform_block_layout(
            out, IndexMap.from_func(straight, ndim=len(loops), index_dtype="int64")
        )


def split_line(sch: Any, line: Any, machine: Machine) -> tuple[Any, Any]:
    """Cut a line of pixels into tiles of a few vectors."""
    length = blocks.tile_length(int(sch.get(line).extent), machine.lanes, _SIDE_BY_SIDE)
    tile, lane = sch.split(line, [None, length])
    return tile, lane


def place_rows(
    sch: Any, softmax: Softmax, loop: Any, machine: Machine, *, innermost: bool
) -> Callable[[], None]:
    """Compute the blocks of a softmax under a loop of the block that finishes it.

    Args:
        sch: The schedule.
        softmax: Its blocks.
        loop: Over tiles of pixels, or over pixels where channels lie innermost.
        machine: Lanes of the core.
        innermost: Whether the softmax runs over the innermost axis.

    Returns:
        What vectorises the reductions; called after the jobs are made parallel, since TVM makes no
        loop parallel over a reduction whose start is a block of its own.
    """
    inverse, total, maximum, exponential = (
        sch.get_sblock(name, func_name="main")
        for name in (softmax.inverse, softmax.total, softmax.maximum, softmax.exponential)
    )
    partial_total = _lane_partials(sch, total, machine) if innermost else None
    partial_maximum = _lane_partials(sch, maximum, machine) if innermost else None
    # Consumers first: each stage goes to where it is used.
    for block in (inverse, total, partial_total, exponential, maximum, partial_maximum):
        if block is not None:
            sch.compute_at(block, loop, preserve_unit_loops=True)
    blocks.vectorize_innermost(sch, exponential, machine.lanes)
    if not innermost:
        blocks.vectorize_innermost(sch, inverse, machine.lanes)

    def finish() -> None:
        for block in (partial_total, partial_maximum) if innermost else (total, maximum):
            if block is not None:
                _vectorize_reduction(sch, block, machine)

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
    length = blocks.tile_length(int(sch.get(loop).extent), machine.lanes)
    if length == 1:
        return None
    _, lane = sch.split(loop, [None, length])
    return sch.rfactor(lane, len(sch.get(block).iter_vars) - 1)


def _vectorize_reduction(sch: Any, block: Any, machine: Machine) -> None:
    """Registers side by side, the reduced channels one after the other."""
    iters = list(sch.get(block).iter_vars)
    loops = sch.get_loops(block)[-len(iters) :]
    own = list(zip(loops, iters, strict=True))
    (channel,) = [loop for loop, var in own if int(var.iter_type) == blocks.REDUCED]
    kept = [loop for loop, var in own if int(var.iter_type) == blocks.SPATIAL]
    # The lanes are the only kept axis that is longer than one: a job has one tile.
    lane = max(kept, key=lambda loop: int(sch.get(loop).extent))
    extent = int(sch.get(lane).extent)
    length = machine.lanes if extent % machine.lanes == 0 else extent
    registers, lane = sch.split(lane, [None, length])
    sch.reorder(channel, registers, lane)
    blocks.unroll_and_vectorize(sch, [registers, lane])
    init = sch.decompose_reduction(block, channel)
    blocks.unroll_and_vectorize(sch, sch.get_loops(init)[-2:])
