# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC with output channels as the vector axis: small maps, many channels.

    acc[y, x, g, o, l] = sum over i, j, c of
                         padded[y*s + i, x*s + j, g*C + c] * w[g, o, i, j, c, l]

The weights are packed so that a register block reads them as one stream; a column's features are
padded with zero weights to whole vectors (93 -> 96), and the padding is never written.
"""

from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.softmax import place_rows
from schedules.space import Choose, Knob, Part
from schedules.stages import Stage

NAME = "conv2d_channels"


def feature_blocks(features: int, lanes: int) -> int:
    """Vectors that hold one column's features; one more where that makes the number even.

    A prime number of vectors admits no register block of several; a zero vector costs less than
    five per cent from twenty on.
    """
    count = -(-features // lanes)
    return count + 1 if count > 20 and count % 2 and count % 3 else count


def conv2d(
    x: Any,
    weight: Any,
    features: int,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> Any:
    """The computation.

    Args:
        x: te.Tensor [N, H, W, C].
        weight: te.Tensor [G, O, KH, KW, C / G, L], packed by `pack`.
        features: F, output channels a column before padding to O * L.
        strides: Down, across.
        padding: Top, left, bottom, right.

    Returns:
        te.Tensor [N, OH, OW, G * F].
    """
    from tvm import te, tirx

    batch, height, width, channels = (int(extent) for extent in x.shape)
    groups, outer, kh, kw, per_group, lanes = (int(extent) for extent in weight.shape)
    (down, across), (top, left, bottom, right) = strides, padding
    out_h = (height + top + bottom - kh) // down + 1
    out_w = (width + left + right - kw) // across + 1
    zero = tirx.const(0.0, x.dtype)
    padded = x
    if any(padding):

        def pad(n: Any, y: Any, xx: Any, c: Any) -> Any:
            inside = tirx.all(y >= top, y < height + top, xx >= left, xx < width + left)
            return tirx.if_then_else(inside, x[n, y - top, xx - left, c], zero)

        shape = (batch, height + top + bottom, width + left + right, channels)
        padded = te.compute(shape, pad, name="slab")
    ry = te.reduce_axis((0, kh), "ry")
    rx = te.reduce_axis((0, kw), "rx")
    rc = te.reduce_axis((0, per_group), "rc")

    def product(n: Any, y: Any, xx: Any, g: Any, o: Any, lane: Any) -> Any:
        pixel = padded[n, y * down + ry, xx * across + rx, g * per_group + rc]
        return te.sum(pixel * weight[g, o, ry, rx, rc, lane], axis=[ry, rx, rc])

    acc = te.compute((batch, out_h, out_w, groups, outer, lanes), product, name=NAME)

    def pick(n: Any, y: Any, xx: Any, c: Any) -> Any:
        feature = c % features
        return acc[n, y, xx, c // features, feature // lanes, feature % lanes]

    return te.compute((batch, out_h, out_w, groups * features), pick, name="columns")


def pack(weight: Any, groups: int, machine: Machine) -> Any:
    """OIHW array [G * F, C / G, KH, KW] -> [G, O, KH, KW, C / G, L], zeros behind feature F."""
    import numpy as np

    out, per_group, kh, kw = weight.shape
    features, lanes = out // groups, machine.lanes
    outer = feature_blocks(features, lanes)
    padded = np.zeros((groups, outer * lanes, per_group, kh, kw), dtype=weight.dtype)
    padded[:, :features] = weight.reshape(groups, features, per_group, kh, kw)
    shaped = padded.reshape(groups, outer, lanes, per_group, kh, kw)
    return shaped.transpose(0, 1, 4, 5, 3, 2).copy()


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """Register blocks of rows x columns x vectors, and what a job is.

    `job_rows` r > 0 makes r rows of the map (of one column) a job, 0 makes a block of features one:
    then each weight is read once, by one core, which pays where the weights outweigh the map.
    """
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    block = sch.get(sch.get_sblock(stage.anchor, func_name="main"))
    _, out_h, out_w, groups, outer, lanes, kh, kw, per_group = (
        int(var.dom.extent) for var in block.iter_vars
    )
    tiles = [
        (rows, cols, vectors)
        for rows in blocks.divisors(out_h, 2)
        for cols in blocks.divisors(out_w, 14)
        for vectors in blocks.divisors(outer, 4)
        if rows * cols * vectors <= machine.accumulators and (rows == 1 or cols * 2 > out_w)
    ]

    # A step loads `vectors` of weights and one broadcast a pixel for their product of FMAs.
    def cost(tile: tuple[int, int, int]) -> float:
        pixels, vectors = tile[0] * tile[1], tile[2]
        return (pixels + vectors) / (pixels * vectors) + (0.2 if pixels * vectors < 8 else 0.0)

    ranked = sorted(tiles, key=cost)[:8]
    code = {rows * 10000 + cols * 100 + v: (rows, cols, v) for rows, cols, v in ranked}
    weights = groups * outer * lanes * kh * kw * per_group
    pixels = out_h * out_w * groups * per_group
    by_rows = out_h if groups >= machine.threads or machine.threads == 1 else ranked[0][0]
    knobs = (
        Knob("tile", tuple(code), next(iter(code))),
        Knob("job_rows", (0, *blocks.divisors(out_h)), 0 if weights > pixels else by_rows),
    )

    def schedule(sch: Any, choose: Choose) -> None:
        tile, rows = code[choose("tile")], choose("job_rows")
        if rows:
            # A job holds whole tiles; where its rows do not, it is the whole map.
            rows = rows if rows % tile[0] == 0 else out_h
        _schedule(sch, stage, machine, groups, tile, rows)

    return Part(knobs, schedule)


def _schedule(
    sch: Any,
    stage: Stage,
    machine: Machine,
    groups: int,
    tile: tuple[int, int, int],
    job_rows: int,
) -> None:
    conv, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    n, y, x, c = sch.get_loops(out)
    by_features = job_rows == 0
    columns = 1 if by_features or stage.softmax is not None else groups
    g, f = sch.split(c, [columns, None])
    y_job, y_in = sch.split(y, [None, job_rows or 1])
    sch.reorder(n, g, y_job, y_in, x, f)
    finish_softmax = None
    if stage.softmax is not None:
        finish_softmax = place_rows(sch, stage.softmax, x, machine, innermost=True)
    job = sch.fuse(n, g, y_job)
    if not by_features:
        sch.compute_at(conv, job, preserve_unit_loops=True)
        for pad in stage.pads:
            sch.compute_at(sch.get_sblock(pad, func_name="main"), job, preserve_unit_loops=True)
    for name in (stage.out, *stage.pads):
        blocks.vectorize_innermost(sch, sch.get_sblock(name, func_name="main"), machine.lanes)
    sch.parallel(job)
    if finish_softmax is not None:
        finish_softmax()

    n, y, x, g, o, lane, ry, rx, rc = sch.get_loops(conv)[-9:]
    y_out, y_in = sch.split(y, [None, tile[0]])
    x_out, x_in = sch.split(x, [None, tile[1]])
    o_out, o_in = sch.split(o, [None, tile[2]])
    sch.reorder(n, g, o_out, y_out, x_out, ry, rx, rc, y_in, x_in, o_in, lane)
    registers = sch.cache_write(conv, 0, blocks.REGISTERS)
    sch.reverse_compute_at(registers, x_out, preserve_unit_loops=True)
    if by_features:
        sch.parallel(sch.fuse(n, g, o_out))
        for pad in stage.pads:
            slab = sch.get_loops(sch.get_sblock(pad, func_name="main"))
            sch.parallel(sch.fuse(*slab[:2]))
    blocks.unroll_and_vectorize(sch, [y_in, x_in, o_in, lane])
    init = sch.decompose_reduction(conv, ry)
    blocks.unroll_and_vectorize(sch, sch.get_loops(init)[-4:])
    *tile_loops, lane = sch.get_loops(registers)
    sch.vectorize(lane)
    for loop in tile_loops[-5:]:
        sch.unroll(loop)
