# SPDX-License-Identifier: Apache-2.0
"""Average pooling in NCHW, first down the rows, then across.

    slab[c, y, q] = sum over i of x[c, y*s - top + i, q - left],   0 where q is padding
    out[c, y, x]  = sum over j of slab[c, y, x*s + j] / (KH * KW)

The first sum is of whole vectors, and takes two thirds of the additions; only the second reads
every other pixel. The division is a product: a Cortex-A72 divides four numbers in 34 cycles.
"""

from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, Part, Placed
from schedules.stages import Stage

NAME = "average_pool"


def average_pool(
    x: Any, kernel: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int, int, int]
) -> Any:
    """The computation; padding counts as zeros.

    Args:
        x: te.Tensor [N, C, H, W].
        kernel: Down, across.
        strides: Down, across.
        padding: Top, left, bottom, right.

    Returns:
        te.Tensor [N, C, OH, OW].
    """
    from tvm import te, tirx

    batch, channels, height, width = (int(extent) for extent in x.shape)
    (kh, kw), (down, across), (top, left, bottom, right) = kernel, strides, padding
    out_h = (height + top + bottom - kh) // down + 1
    out_w = (width + left + right - kw) // across + 1
    zero, one = tirx.const(0.0, x.dtype), tirx.const(1.0, x.dtype)

    def row(n: Any, c: Any, y: Any, q: Any, i: int) -> Any:
        at = y * down - top + i
        if i >= top and (out_h - 1) * down - top + i < height:
            return x[n, c, at, q]
        # A weight of zero, not a branch, as in `winograd_pixels`.
        weight = tirx.Select(tirx.all(at >= 0, at < height), one, zero)
        return weight * x[n, c, tirx.min(tirx.max(at, 0), height - 1), q]

    def summed(n: Any, c: Any, y: Any, q: Any) -> Any:
        total = row(n, c, y, q - left, 0)
        for i in range(1, kh):
            total = total + row(n, c, y, q - left, i)
        inside = tirx.all(q >= left, q < width + left)
        return tirx.if_then_else(inside, total, zero) if left or right else total

    line = te.compute((batch, channels, out_h, width + left + right), summed, name=blocks.SLAB)
    rx = te.reduce_axis((0, kw), "rx")
    share = tirx.const(1.0 / (kh * kw), x.dtype)
    return te.compute(
        (batch, channels, out_h, out_w),
        lambda n, c, y, xx: te.sum(line[n, c, y, xx * across + rx] * share, axis=[rx]),
        name=NAME,
    )


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """One point: a job is a channel, whose sums stay in the first-level cache."""
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    iters = sch.get(sch.get_sblock(stage.anchor, func_name="main")).iter_vars
    channels = int(iters[1].dom.extent)

    def place(sch: Any, choose: Choose, columns: int) -> Placed:
        del choose
        out, pool = (sch.get_sblock(name, func_name="main") for name in (stage.out, stage.anchor))
        n, c, *_ = sch.get_loops(out)
        g, job = sch.split(c, [columns, None])
        column = sch.fuse(n, g)
        if stage.out != stage.anchor:
            sch.compute_at(pool, job, preserve_unit_loops=True)
            blocks.vectorize_innermost(sch, out, machine.lanes)
        for name in stage.pads:
            slab = sch.get_sblock(name, func_name="main")
            sch.compute_at(slab, job, preserve_unit_loops=True)
            if sch.can_decompose_padding(slab, sch.get_loops(slab)[2]):
                zeros = sch.decompose_padding(slab, sch.get_loops(slab)[2])
                blocks.vectorize_innermost(sch, zeros, machine.lanes)
            blocks.vectorize_innermost(sch, slab, machine.lanes)
        # Its loop over pixels is left to LLVM, which makes interleaved loads of it.
        return Placed(column, job, lambda: sch.unroll(sch.get_loops(pool)[-1]))

    return Part((), place=place, columns=tuple(blocks.divisors(channels)), groups=channels)
