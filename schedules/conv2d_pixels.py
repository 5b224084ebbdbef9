# SPDX-License-Identifier: Apache-2.0
"""Convolution in NCHW with pixels as the vector axis: large maps, few channels a column.

The rows of a padded map, one behind the other with a pitch of S = OW + (KW - 1) // stride, are one
long line on which a 3x3 convolution is nine shifted multiply-adds:

    acc[f, q] = sum over c, i, j of
                slab[c, i % s, j % s, q + (i // s) * S + j // s] * w[c, i, j, f]
    out[f, y, x] = acc[f, y * S + x]

so that vectors run across the ends of rows, and only the S - OW columns between them are wasted:
2 to 4 % at 56 and 28 pixels, where vectors of channels would waste 38 % (10 channels in 16 lanes).
Strided convolutions split the map into s x s phases. A job is a slab of R rows of one column, whose
padded input fits the first-level cache.
"""

import math
from dataclasses import dataclass
from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.softmax import place_rows, split_line, straighten
from schedules.space import Choose, Knob, Part, Placed
from schedules.stages import Stage

NAME = "conv2d_pixels"

_LINE_BYTES = 64

# Of a vector of pixels: taps across read most of them across a boundary of 16 bytes.
SPLIT_LOADS = 1.5


@dataclass(frozen=True)
class Slab:
    """How a map is cut for one machine.

    Attributes:
        rows: Output rows of a slab; divides the number of rows.
        pitch: Distance between two rows of the line, in pixels.
        vectors: Vectors of accumulators that cover the slab.
    """

    rows: int
    pitch: int
    vectors: int

    def waste(self, width: int, lanes: int) -> float:
        """Share of the computed lanes that are no pixels of the output."""
        return 1.0 - self.rows * width / (self.vectors * lanes)


def register_blocks(features: int, vectors: int, machine: Machine) -> list[tuple[int, int]]:
    """Blocks of features x vectors that divide a column's slab and fit the registers."""
    return [
        (f, v)
        for f in blocks.divisors(features)
        for v in blocks.divisors(vectors, 8)
        if machine.holds(f, v)
    ]


def least_stall(features: int, vectors: int, machine: Machine, loads: float) -> float:
    """`Machine.stall` of the best block; each of its vectors takes so many loads."""
    fitting = register_blocks(features, vectors, machine)
    return min(machine.stall(f, v, loads) for f, v in fitting)


def choose_slab(
    height: int,
    width: int,
    kernel_width: int,
    stride: int,
    channels: int,
    features: int,
    machine: Machine,
) -> Slab:
    """The slab with the least waste among those whose input fits half of the first-level cache.

    A pitch a few pixels longer is tried too: it can make the number of vectors divisible by two or
    three, which a register block of several vectors wants.

    Args:
        height: Rows of the output.
        width: Its columns.
        kernel_width: Taps across.
        stride: Across.
        channels: Of one column.
        features: Of one column.
        machine: Lanes, first-level cache and registers.
    """
    shortest = width + (kernel_width - 1) // stride
    loads = 1.0 if kernel_width == 1 else SPLIT_LOADS
    best: tuple[float, Slab] | None = None
    for rows in blocks.divisors(height):
        for pitch in range(shortest, shortest + 4):
            vectors = -(-((rows - 1) * pitch + width) // machine.lanes)
            slab = Slab(rows, pitch, vectors)
            size = 4 * channels * stride * stride * (rows + kernel_width - 1) * pitch
            # Cost relative to perfect lanes: waste, a cold cache, the halo that is copied twice,
            # and a prime number of vectors, for which no register block has more than one.
            cost = slab.waste(width, machine.lanes)
            # A pointwise convolution reads each pixel in one place: it may have all of the cache.
            share = machine.l1_bytes // (1 if kernel_width == 1 else 2)
            cost += 0.3 if size > share and rows > 1 else 0.0
            cost += 0.02 * (kernel_width - 1) / rows
            blocked = vectors == 1 or any(vectors % part == 0 for part in (2, 3, 5, 7))
            cost += 0.0 if blocked else 0.1
            cost += least_stall(features, vectors, machine, loads)
            if best is None or cost < best[0] - 1e-9:
                best = (cost, slab)
    assert best is not None  # noqa: S101  (a height has at least the divisor 1)
    return best[1]


def conv2d(
    x: Any,
    weight: Any,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    machine: Machine,
) -> Any:
    """The computation, cut into slabs.

    Args:
        x: te.Tensor [N, C, H, W].
        weight: te.Tensor [G, C / G, KH, KW, F] with F output channels a column.
        strides: Down, across.
        padding: Top, left, bottom, right.
        machine: Decides the slab.

    Returns:
        te.Tensor [N, G * F, OH, OW].
    """
    from tvm import te, tirx

    batch, channels, height, width = (int(extent) for extent in x.shape)
    groups, per_group, kh, kw, features = (int(extent) for extent in weight.shape)
    (down, across), (top, left, bottom, right) = strides, padding
    out_h = (height + top + bottom - kh) // down + 1
    out_w = (width + left + right - kw) // across + 1
    slab = choose_slab(out_h, out_w, kw, across, per_group, features, machine)
    pitch, lanes = slab.pitch, machine.lanes
    chunks = out_h // slab.rows
    reach = ((kh - 1) // down) * pitch + (kw - 1) // across
    slab_rows = -(-(slab.vectors * lanes + reach) // pitch)
    total_rows = (chunks - 1) * slab.rows + slab_rows
    zero = tirx.const(0.0, x.dtype)

    def padded(*at: Any) -> Any:
        n, c, *phase, r, q = at
        y = r * down + phase[0] - top if phase else r - top
        xx = q * across + phase[1] - left if phase else q - left
        inside = tirx.all(y >= 0, y < height, xx >= 0, xx < width)
        return tirx.if_then_else(inside, x[n, c, y, xx], zero)

    strided = (down, across) != (1, 1)
    phases = (down, across) if strided else ()
    # A pointwise convolution reads the map as it lies where its rows fill whole vectors. A vector
    # should fill a cache line: shorter reads, a map apart, are more than a prefetcher can follow.
    whole = pitch == width and slab.rows * width == slab.vectors * lanes
    direct = (kh, kw) == (1, 1) and not strided and not any(padding) and whole
    line = x
    if not direct or 4 * lanes < _LINE_BYTES:
        shape = (batch, channels, *phases, total_rows, pitch)
        line = te.compute(shape, (lambda *at: x[at]) if direct else padded, name=blocks.SLAB)
    rc = te.reduce_axis((0, per_group), "rc")
    ry = te.reduce_axis((0, kh), "ry")
    rx = te.reduce_axis((0, kw), "rx")

    def product(n: Any, g: Any, chunk: Any, f: Any, vector: Any, lane: Any) -> Any:
        q = vector * lanes + lane + (ry // down) * pitch + rx // across
        phase = (ry % down, rx % across) if strided else ()
        pixel = line[(n, g * per_group + rc, *phase, chunk * slab.rows + q // pitch, q % pitch)]
        return te.sum(pixel * weight[g, rc, ry, rx, f], axis=[rc, ry, rx])

    acc = te.compute((batch, groups, chunks, features, slab.vectors, lanes), product, name=NAME)

    def pick(n: Any, c: Any, y: Any, xx: Any) -> Any:
        q = (y % slab.rows) * pitch + xx
        return acc[n, c // features, y // slab.rows, c % features, q // lanes, q % lanes]

    return te.compute((batch, groups * features, out_h, out_w), pick, name="columns")


def pack(weight: Any, groups: int) -> Any:
    """OIHW array [G * F, C / G, KH, KW] -> [G, C / G, KH, KW, F], a column's features together."""
    out, per_group, kh, kw = weight.shape
    return weight.reshape(groups, out // groups, per_group, kh, kw).transpose(0, 2, 3, 4, 1).copy()


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """Register blocks of features x vectors, and which taps are unrolled: none, a row's, all."""
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    iters = list(sch.get(sch.get_sblock(stage.anchor, func_name="main")).iter_vars)
    _, groups, chunks, features, vectors = (int(var.dom.extent) for var in iters[:5])
    kernel_width = int(iters[-1].dom.extent)
    tiles = register_blocks(features, vectors, machine)

    # Each step of the reduction loads v vectors and f weights for f * v multiply-adds.
    def cost(tile: tuple[int, int]) -> float:
        f, v = tile
        return (f + v) / (f * v) + (0.2 if f * v < 8 else 0.0)

    code = {f * 100 + v: (f, v) for f, v in sorted(tiles, key=cost)[:8]}
    taps = (0, 1, 2) if kernel_width > 1 else (0,)
    knobs = (
        Knob("tile", tuple(code), next(iter(code))),
        # All nine at once cost address arithmetic at 10 channels and pay at 21: measure.
        Knob("unroll_taps", taps, min(1, taps[-1])),
    )

    def place(sch: Any, choose: Choose, columns: int) -> Placed:
        f, v = code[choose("tile")]
        tile = (math.gcd(f, groups * features // columns), v)
        return _place(sch, stage, machine, (columns, chunks), (tile, choose("unroll_taps")))

    # The features of one column read the same pixels: they may be cut anywhere.
    columns = (groups,) if groups > 1 else tuple(blocks.divisors(features))
    return Part(knobs, place=place, columns=columns, groups=groups)


def _place(
    sch: Any,
    stage: Stage,
    machine: Machine,
    cut: tuple[int, int],
    plan: tuple[tuple[int, int], int],
) -> Placed:
    (columns, chunks), (tile, unroll_taps) = cut, plan
    conv, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    finish_softmax = None
    if stage.softmax is None:
        n, c, y, x = sch.get_loops(out)
        g, f = sch.split(c, [columns, None])
        chunk, row = sch.split(y, [chunks, None])
        sch.reorder(n, g, chunk, f, row, x)
    else:
        straighten(sch, out)
        n, c, q = sch.get_loops(out)
        g, f = sch.split(c, [columns, None])
        chunk, line = sch.split(q, [chunks, None])
        line, lane = split_line(sch, line, machine)
        sch.reorder(n, g, chunk, line, f, lane)
        finish_softmax = place_rows(sch, stage.softmax, line, machine, innermost=False)
    column = sch.fuse(n, g)
    sch.compute_at(conv, chunk, preserve_unit_loops=True)
    for pad in stage.pads:
        slab = sch.get_sblock(pad, func_name="main")
        sch.compute_at(slab, chunk, preserve_unit_loops=True)
        _fill_slab(sch, slab, machine)
    blocks.vectorize_innermost(sch, out, machine.lanes)

    def finish() -> None:
        if finish_softmax is not None:
            finish_softmax()
        *_, f, vector, lane, rc, ry, rx = sch.get_loops(conv)
        f_out, f_in = sch.split(f, [None, tile[0]])
        v_out, v_in = sch.split(vector, [None, tile[1]])
        sch.reorder(v_out, f_out, rc, ry, rx, f_in, v_in, lane)
        for loop in (rx, ry)[:unroll_taps]:
            sch.unroll(loop)
        blocks.accumulate_in_registers(sch, conv, f_out, rc, [f_in, v_in, lane])

    return Placed(column, chunk, finish)


def _fill_slab(sch: Any, slab: Any, machine: Machine) -> None:
    """Zero the slab, then copy the rows that exist; strided phases are read side by side."""
    loops = sch.get_loops(slab)
    if len(sch.get(slab).iter_vars) > 4:
        # The phases of a row in one pass over it, which LLVM makes an interleaved load.
        channel, down, across, row, column = loops[-5:]
        sch.reorder(channel, row, down, column, across)
        sch.unroll(across)
        return
    # Around the slab's own loops are those over columns and jobs.
    if not sch.can_decompose_padding(slab, loops[2]):
        blocks.vectorize_innermost(sch, slab, machine.lanes)
        return
    zeros = sch.decompose_padding(slab, loops[2])
    blocks.vectorize_innermost(sch, slab, machine.lanes)
    _, *inner = sch.get_loops(zeros)[2:]
    _, lane = sch.split(sch.fuse(*inner), [None, machine.lanes])
    sch.vectorize(lane)
