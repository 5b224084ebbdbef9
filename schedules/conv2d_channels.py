# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC with output channels as the vector axis: small maps, many channels.

    slab[y, t, c, q]   = padded[y, t*T*s + q, c],    q < (T - 1) * s + KW
    acc[y, x, g, o, l] = sum over i, j, c of slab[y*s + i, x / T, g*C + c, (x % T)*s + j] *
                                             w[g, o / V, i, j, c, o % V, l]

A register block is T pixels by V vectors of features. On Arm it reads its weights and its pixels as
one stream each: the pixels of a tile lie side by side for one channel after the other. Read from
NHWC they are T streams, which meet in the two ways of a Cortex-A72's cache. Elsewhere V = 1, and
the slab is the padded map. A column's features are padded with zero weights to whole vectors
(93 -> 96), and the padding is never written.

With AVX2's sixteen registers the pixels of a pointwise convolution are one line, filled up to whole
blocks of T: rows of 7 or 14 admit no block of twelve accumulators that does not wait for its loads.
Other convolutions may cut a row into blocks of which the last is a pixel short: 7 = 4 + 3.
"""

import math
from collections.abc import Callable
from typing import Any

from schedules import blocks, streamed_weights
from schedules.machines import ARM_LANES, Machine
from schedules.softmax import place_rows
from schedules.space import Choose, Knob, Part
from schedules.stages import Stage

NAME = blocks.CONV2D_CHANNELS

_AVX2_LANES = 8
# Pixels of a register block, in the maps of 7, 14 and 28 pixels where channels are innermost.
_PIXELS = 7


def feature_blocks(features: int, lanes: int) -> int:
    """Vectors that hold one column's features; one or two more where that makes better blocks.

    A prime number of vectors admits no register block of several; a zero vector costs less than
    five per cent from twenty on. On Arm a block is 7 pixels by 3 vectors: 21 of the 24 registers
    that accumulate, where 7 by 2 would load two words for three multiply-adds.
    """
    count = -(-features // lanes)
    if lanes == ARM_LANES:
        padded = -(-count // 3) * 3
        return padded if padded <= count * 1.025 else count
    return count + 1 if count > 20 and count % 2 and count % 3 else count


def _vectors(outer: int, machine: Machine) -> int:
    """V: vectors of a register block where weights are packed for it, else 1.

    A Zen 5 core is 5 % faster with a stream for each vector of a block than with one for all.
    """
    if machine.lanes != ARM_LANES:
        return 1
    return max(
        v for v in blocks.divisors(outer, 4) if v == 1 or v * _PIXELS <= machine.accumulators
    )


def tile_columns(width: int) -> int:
    """T: pixels of a row that are computed together; a divisor of the row's."""
    return blocks.divisors(width, _PIXELS + 1)[-1]


def _row_blocks(width: int, lanes: int) -> list[int]:
    """Pixels of a row that a register block may have, in ascending order."""
    if lanes == ARM_LANES:
        return blocks.divisors(tile_columns(width), 14)
    exact = blocks.divisors(width, 14)
    short = [step for step in range(3, min(width, 14)) if width % step == step - 1]
    return sorted({*exact, *short}) if lanes == _AVX2_LANES else exact


def line_block(outer: int, pixels: int) -> int:
    """T of a pointwise convolution in one line; one that divides the pixels if it is long enough.

    With three vectors, else two, else one, twelve accumulators; eight hide the latency of a
    multiply-add on two ports.
    """
    vectors = next(count for count in (3, 2, 1) if outer % count == 0)
    longest = 12 // vectors
    exact = [step for step in range(longest, 0, -1) if pixels % step == 0 and step * vectors >= 8]
    return exact[0] if exact else longest


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
        weight: te.Tensor [G, O / V, KH, KW, C / G, V, L], packed by `pack`.
        features: F, output channels a column before padding to O * L.
        strides: Down, across.
        padding: Top, left, bottom, right.

    Returns:
        te.Tensor [N, OH, OW, G * F].
    """
    from tvm import te, tirx

    batch, height, width, channels = (int(extent) for extent in x.shape)
    groups, outer, kh, kw, per_group, vectors, lanes = (int(extent) for extent in weight.shape)
    (down, across), (top, left, bottom, right) = strides, padding
    out_h = (height + top + bottom - kh) // down + 1
    out_w = (width + left + right - kw) // across + 1
    zero = tirx.const(0.0, x.dtype)
    panels = lanes == ARM_LANES
    columns = tile_columns(out_w)
    pointwise = (kh, kw, down, across) == (1, 1, 1, 1) and not any(padding)
    if pointwise and lanes == _AVX2_LANES:
        return _pointwise(x, weight, features)

    def inside(y: Any, xx: Any) -> Any:
        return tirx.all(y >= top, y < height + top, xx >= left, xx < width + left)

    padded = x
    if panels:

        def panel(n: Any, y: Any, t: Any, c: Any, q: Any) -> Any:
            xx = t * (columns * across) + q
            pixel = x[n, y - top, xx - left, c]
            return tirx.if_then_else(inside(y, xx), pixel, zero) if any(padding) else pixel

        reach = (columns - 1) * across + kw
        shape = (batch, (out_h - 1) * down + kh, out_w // columns, channels, reach)
        padded = te.compute(shape, panel, name=blocks.SLAB)
    elif any(padding):

        def pad(n: Any, y: Any, xx: Any, c: Any) -> Any:
            return tirx.if_then_else(inside(y, xx), x[n, y - top, xx - left, c], zero)

        area = (height + top + bottom, width + left + right)
        padded = te.compute((batch, *area, channels), pad, name=blocks.SLAB)
    ry = te.reduce_axis((0, kh), "ry")
    rx = te.reduce_axis((0, kw), "rx")
    rc = te.reduce_axis((0, per_group), "rc")

    def product(n: Any, y: Any, xx: Any, g: Any, o: Any, lane: Any) -> Any:
        row, c = y * down + ry, g * per_group + rc
        if panels:
            pixel = padded[n, row, xx // columns, c, xx % columns * across + rx]
        else:
            pixel = padded[n, row, xx * across + rx, c]
        return te.sum(
            pixel * weight[g, o // vectors, ry, rx, rc, o % vectors, lane], axis=[ry, rx, rc]
        )

    acc = te.compute((batch, out_h, out_w, groups, outer * vectors, lanes), product, name=NAME)

    def pick(n: Any, y: Any, xx: Any, c: Any) -> Any:
        feature = c % features
        return acc[n, y, xx, c // features, feature // lanes, feature % lanes]

    return te.compute((batch, out_h, out_w, groups * features), pick, name="columns")


def _pointwise(x: Any, weight: Any, features: int) -> Any:
    """1x1, the pixels of a map one line."""
    from tvm import te, tirx

    batch, height, width, _ = (int(extent) for extent in x.shape)
    groups, outer, _, _, per_group, _, lanes = (int(extent) for extent in weight.shape)
    pixels = height * width
    step = line_block(outer, pixels)
    line = -(-pixels // step) * step
    ry = te.reduce_axis((0, 1), "ry")
    rx = te.reduce_axis((0, 1), "rx")
    rc = te.reduce_axis((0, per_group), "rc")

    def product(n: Any, y: Any, q: Any, g: Any, o: Any, lane: Any) -> Any:
        del y
        # Beyond the map the last pixel once more, whose results nobody reads.
        at = q if line == pixels else tirx.min(q, pixels - 1)
        pixel = x[n, at // width, at % width, g * per_group + rc]
        return te.sum(pixel * weight[g, o, ry, rx, rc, 0, lane], axis=[ry, rx, rc])

    acc = te.compute((batch, 1, line, groups, outer, lanes), product, name=NAME)

    def pick(n: Any, y: Any, xx: Any, c: Any) -> Any:
        feature = c % features
        return acc[n, 0, y * width + xx, c // features, feature // lanes, feature % lanes]

    return te.compute((batch, height, width, groups * features), pick, name="columns")


def pack(weight: Any, groups: int, pixels: int, machine: Machine) -> Any:
    """OIHW array [G * F, C / G, KH, KW] -> [G, O / V, KH, KW, C / G, V, L]; zeros behind F.

    Args:
        weight: The array.
        groups: G.
        pixels: Of the output.
        machine: Decides V and L.
    """
    import numpy as np

    out, per_group, kh, kw = weight.shape
    features, lanes = out // groups, machine.lanes
    outer = feature_blocks(features, lanes)
    stored = groups * outer * lanes * per_group * kh * kw
    streams = streamed_weights.suits(stored, pixels, groups * per_group, machine)
    vectors = 1 if streams else _vectors(outer, machine)
    padded = np.zeros((groups, outer * lanes, per_group, kh, kw), dtype=weight.dtype)
    padded[:, :features] = weight.reshape(groups, features, per_group, kh, kw)
    shaped = padded.reshape(groups, outer // vectors, vectors, lanes, per_group, kh, kw)
    return shaped.transpose(0, 1, 5, 6, 4, 2, 3).copy()


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """Register blocks of rows x columns x vectors, and what a job is.

    `job_rows` r > 0 makes r rows of the map (of one column) a job, 0 makes a block of features one:
    then each weight is read once, by one core, which pays where the weights outweigh the map.
    """
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    block = sch.get(sch.get_sblock(stage.anchor, func_name="main"))
    _, rows_of_block, out_w, groups, outer, lanes, kh, kw, per_group = (
        int(var.dom.extent) for var in block.iter_vars
    )
    _, out_h, width, _ = (
        int(var.dom.extent)
        for var in sch.get(sch.get_sblock(stage.out, func_name="main")).iter_vars
    )
    weights = groups * outer * lanes * kh * kw * per_group
    if streamed_weights.suits(weights, out_h * width, groups * per_group, machine):
        return _streamed_part(sch, stage, machine)
    line = rows_of_block < out_h  # of all pixels; a job is some rows of the map all the same
    tiles = [
        (rows, cols, vectors)
        for rows in blocks.divisors(rows_of_block, 2)
        for cols in (blocks.divisors(out_w, 14) if line else _row_blocks(out_w, lanes))
        for vectors in blocks.divisors(outer, 4)
        if machine.holds(rows * cols, vectors) and (rows == 1 or cols * 2 > out_w)
    ]

    # A step loads `vectors` of weights and one broadcast a pixel for their product of FMAs.
    def cost(tile: tuple[int, int, int]) -> float:
        pixels, vectors = tile[0] * tile[1], tile[2]
        return (pixels + vectors) / (pixels * vectors) + (0.2 if pixels * vectors < 8 else 0.0)

    ranked = sorted(tiles, key=cost)[:8]
    code = {rows * 10000 + cols * 100 + v: (rows, cols, v) for rows, cols, v in ranked}
    read = out_h * width * groups * per_group
    by_rows = out_h if groups >= machine.threads or machine.threads == 1 else ranked[0][0]
    unrolls = tuple(blocks.divisors(per_group, 4))
    knobs = (
        Knob("tile", tuple(code), next(iter(code))),
        Knob("job_rows", (0, *blocks.divisors(out_h)), 0 if weights > read else by_rows),
        Knob("unroll", unrolls, unrolls[-1] if lanes == ARM_LANES else 1),
    )

    def schedule(sch: Any, choose: Choose) -> None:
        tile, rows = code[choose("tile")], choose("job_rows")
        if rows:
            # A job holds whole tiles; where its rows do not, it is the whole map.
            rows = rows if rows % tile[0] == 0 else out_h
            if line and rows * width % tile[1]:
                rows = 0
        _schedule(sch, stage, machine, groups, (tile, rows, choose("unroll")))

    def feed(sch: Any, choose: Choose, loop: Any) -> Callable[[], None]:
        plan = (code[choose("tile")], choose("job_rows"), choose("unroll"))
        return _feed(sch, stage, machine, loop, plan)

    return Part(knobs, schedule, feed=feed if lanes == ARM_LANES and not stage.softmax else None)


def _streamed_part(sch: Any, stage: Stage, machine: Machine) -> Part:
    conv = sch.get_sblock(stage.anchor, func_name="main")
    width = int(sch.get(conv).iter_vars[2].dom.extent)

    def schedule(sch: Any, choose: Choose) -> None:
        conv = _schedule_map(sch, stage, machine, columns=1, job_rows=0)
        streamed_weights.schedule(sch, conv, choose)
        _make_pads_parallel(sch, stage)

    found = streamed_weights.knobs(sch, conv, _row_blocks(width, machine.lanes), machine)
    return Part(found, schedule)


def _schedule_map(sch: Any, stage: Stage, machine: Machine, columns: int, job_rows: int) -> Any:
    """Schedule the map that the sums end in and the slab that they read; give the sums' block.

    Jobs are rows of the map and hold its sums; with `job_rows` 0 the sums have jobs of their own.
    """
    conv, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    n, y, x, c = sch.get_loops(out)
    g, f = sch.split(c, [1 if stage.softmax is not None else columns, None])
    y_job, y_in = sch.split(y, [None, job_rows or 1])
    sch.reorder(n, g, y_job, y_in, x, f)
    finish_softmax = None
    if stage.softmax is not None:
        finish_softmax = place_rows(sch, stage.softmax, x, machine, innermost=True)
    job = sch.fuse(n, g, y_job)
    if job_rows:
        sch.compute_at(conv, job, preserve_unit_loops=True)
        for pad in stage.pads:
            sch.compute_at(sch.get_sblock(pad, func_name="main"), job, preserve_unit_loops=True)
    if stage.softmax is None:
        blocks.finish_side_by_side(sch, out, machine.lanes)
    else:
        blocks.vectorize_innermost(sch, out, machine.lanes)
    for pad in stage.pads:
        slab = sch.get_sblock(pad, func_name="main")
        _fill_slab(sch, slab, machine, rows_are_jobs=not job_rows)
    sch.parallel(job)
    if finish_softmax is not None:
        finish_softmax()
    return conv


def _make_pads_parallel(sch: Any, stage: Stage) -> None:
    for pad in stage.pads:
        slab = sch.get_loops(sch.get_sblock(pad, func_name="main"))
        sch.parallel(sch.fuse(*slab[:2]))


def _schedule(
    sch: Any,
    stage: Stage,
    machine: Machine,
    groups: int,
    plan: tuple[tuple[int, int, int], int, int],
) -> None:
    tile, job_rows, unroll = plan
    by_features = job_rows == 0
    conv = _schedule_map(sch, stage, machine, 1 if by_features else groups, job_rows)
    _schedule_sums(sch, conv, tile, unroll, parallel=by_features)
    if by_features:
        _make_pads_parallel(sch, stage)


def _feed(
    sch: Any, stage: Stage, machine: Machine, loop: Any, plan: tuple[tuple[int, int, int], int, int]
) -> Callable[[], None]:
    """Compute what a job of the only reader reads: the slab, the sums, their end.

    Of sums whose jobs are features only the end.
    """
    tile, job_rows, unroll = plan
    conv, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    pads = [sch.get_sblock(pad, func_name="main") for pad in stage.pads]
    for block in (out, conv, *pads) if job_rows else (out,):
        sch.compute_at(block, loop, preserve_unit_loops=True)
    blocks.finish_side_by_side(sch, out, machine.lanes)
    for slab in pads:
        _fill_slab(sch, slab, machine, rows_are_jobs=not job_rows)

    def finish() -> None:
        y, x = sch.get_loops(conv)[-8:-6]
        rows, cols = (
            math.gcd(t, int(sch.get(i).extent)) for t, i in zip(tile, (y, x), strict=False)
        )
        _schedule_sums(sch, conv, (rows, cols, tile[2]), unroll, parallel=not job_rows)
        if not job_rows:
            _make_pads_parallel(sch, stage)

    return finish


def _schedule_sums(
    sch: Any, conv: Any, tile: tuple[int, int, int], unroll: int, *, parallel: bool
) -> None:
    """Register blocks of rows x columns x vectors; their features in parallel if that is asked."""
    n, y, x, g, o, lane, ry, rx, rc = sch.get_loops(conv)[-9:]
    y_out, y_in = sch.split(y, [None, tile[0]])
    even = int(sch.get(x).extent) % tile[1] == 0
    x_out, x_in = sch.split(x, [None, tile[1]])
    o_out, o_in = sch.split(o, [None, tile[2]])
    c_out, c_in = sch.split(rc, [None, unroll])
    sch.reorder(n, g, o_out, y_out, x_out, ry, rx, c_out, c_in, y_in, x_in, o_in, lane)
    sch.unroll(c_in)
    if not even:  # what the shorter block lacks is then known
        sch.unroll(x_out)
    if parallel:
        sch.parallel(sch.fuse(n, g, o_out))
    blocks.accumulate_in_registers(sch, conv, x_out, ry, [y_in, x_in, o_in, lane], written=6)


def _fill_slab(sch: Any, slab: Any, machine: Machine, *, rows_are_jobs: bool) -> None:
    """Copy vectors of channels; into panels, whose channels lie apart, a pixel after the other."""
    if len(sch.get(slab).iter_vars) == 4:
        blocks.vectorize_innermost(sch, slab, machine.lanes)
        return
    *_, row, tile, channel, pixel = sch.get_loops(slab)
    if _copies_lines(sch, slab):
        # One map after the other, as they lie in memory: one row of each would be no stream.
        sch.reorder(*([row, channel] if rows_are_jobs else [channel, row]), tile, pixel)
        sch.unroll(tile)
        sch.vectorize(pixel)
        return
    extent = int(sch.get(channel).extent)
    channels, lane = sch.split(channel, [None, blocks.vector_length(extent, machine.lanes, 1)])
    sch.reorder(channels, pixel, lane)
    sch.unroll(pixel)
    sch.vectorize(lane)


def _copies_lines(sch: Any, slab: Any) -> bool:
    """Whether a panel without padding is read from NCHW, whose pixels lie side by side too."""
    store = sch.get(slab).body
    source = list(getattr(store.value, "indices", ()))
    return len(source) > 0 and not source[-1].same_as(store.indices[-2])
