# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution of stride 1 in NCHW by Winograd down the rows, pixels as the vector axis.

    slab[k, c, t, q] = (B^T d)[k],    d = rows m t - 1 ... m t + m of channel c, at column q - 1
    u[k, c, j, f]    = (G w[:, c, j, f])[k],    w: three taps down, j: a tap across
    acc[k, f, q]     = sum over c, j of slab[k, c, q + j] * u[k, c, j, f]
    out[f, m t + i, x] = (A^T acc[:, f, t * S + x])[i]

Half the multiply-adds of `conv2d_pixels` (m = 4; two thirds for m = 2), and like there the rows of
tiles lie one behind the other with a pitch of S pixels, so that vectors run across their ends. A
job is a slab of T rows of tiles of one column; its transformed input and its products stay in the
cache. The kernel computes u, once a column or before all jobs: the library then holds three taps,
not m + 2 points.
"""

import math
from typing import Any

from schedules import blocks, winograd
from schedules.conv2d_pixels import SPLIT_LOADS, Slab, least_stall, register_blocks
from schedules.machines import Machine
from schedules.softmax import place_rows
from schedules.space import Choose, Knob, Part, Placed
from schedules.stages import Stage

NAME = "winograd_pixels"


def choose_slab(
    height: int, width: int, channels: int, features: int, groups: int, machine: Machine
) -> Slab:
    """The rows of tiles of a job, their pitch, and the vectors that cover them.

    Args:
        height: Rows of the map; an even number.
        width: Its columns.
        channels: Of one column.
        features: Of one column.
        groups: Columns.
        machine: Lanes, first-level cache, registers and threads.
    """
    algorithm = winograd.algorithm(height)
    tiles = height // algorithm.outputs
    best: tuple[float, Slab] | None = None
    for rows in blocks.divisors(tiles):
        for pitch in range(width + 2, width + 6):
            vectors = -(-((rows - 1) * pitch + width) // machine.lanes)
            slab = Slab(rows, pitch, vectors)
            size = 4 * algorithm.inputs * (channels + features) * vectors * machine.lanes
            cost = slab.waste(width, machine.lanes)
            cost += machine.spill * max(0.0, math.log2(size / machine.l1_bytes))
            # A job reads all weights of its column once more.
            cost += 0.03 / rows
            cost += 0.5 if groups * (tiles // rows) % machine.threads else 0.0
            cost += 0.0 if vectors % 2 == 0 or vectors % 3 == 0 or vectors == 1 else 0.1
            cost += 0.0 if pitch % 4 == 0 else 0.005
            cost += least_stall(features, vectors, machine, SPLIT_LOADS)
            if best is None or cost < best[0] - 1e-9:
                best = (cost, slab)
    assert best is not None  # noqa: S101  (a height has at least the divisor 1)
    return best[1]


def conv2d(x: Any, weight: Any, machine: Machine) -> Any:
    """The computation, cut into slabs.

    Args:
        x: te.Tensor [N, C, H, W], H even.
        weight: te.Tensor from `pack`, with F output channels a column.
        machine: Decides the slab.

    Returns:
        te.Tensor [N, G * F, H, W].
    """
    from tvm import te, tirx

    batch, _, height, width = (int(extent) for extent in x.shape)
    groups, _, per_group, kw, features = (int(extent) for extent in weight.shape)
    slab = choose_slab(height, width, per_group, features, groups, machine)
    rows, pitch, lanes = slab.rows, slab.pitch, machine.lanes
    algorithm = winograd.algorithm(height)
    points = algorithm.inputs
    weight = _transformed_weights(weight, algorithm)
    chunks = height // algorithm.outputs // rows
    # The last vectors read beyond the last row.
    stored = -(-(slab.vectors * lanes + kw - 1) // pitch)
    zero = tirx.const(0.0, x.dtype)

    def transformed(n: Any, g: Any, chunk: Any, k: Any, rc: Any, t: Any, q: Any) -> Any:
        def read(row: Any) -> Any:
            return x[n, g * per_group + rc, row, q - 1]

        values = winograd.transformed_rows(algorithm, read, chunk * rows + t, height, x.dtype)
        inside = [q >= 1, q < width + 1] + ([t < rows] if stored > rows else [])
        return tirx.if_then_else(tirx.all(*inside), winograd.pick(k, values), zero)

    shape = (batch, groups, chunks, points, per_group, stored, pitch)
    line = te.compute(shape, transformed, name=blocks.SLAB)
    rc = te.reduce_axis((0, per_group), "rc")
    rx = te.reduce_axis((0, kw), "rx")

    def product(n: Any, g: Any, chunk: Any, k: Any, f: Any, vector: Any, lane: Any) -> Any:
        q = vector * lanes + lane + rx
        pixel = line[n, g, chunk, k, rc, q // pitch, q % pitch]
        return te.sum(pixel * weight[g, k, rc, rx, f], axis=[rc, rx])

    shape = (batch, groups, chunks, points, features, slab.vectors, lanes)
    acc = te.compute(shape, product, name=NAME)
    slab_rows = rows * algorithm.outputs

    def output(n: Any, c: Any, y: Any, xx: Any) -> Any:
        q = (y % slab_rows) // algorithm.outputs * pitch + xx
        at = (c % features, q // lanes, q % lanes)
        products = [acc[(n, c // features, y // slab_rows, k, *at)] for k in range(points)]
        return winograd.pick(y % algorithm.outputs, algorithm.transform_outputs(products))

    return te.compute((batch, groups * features, height, width), output, name="columns")


def _transformed_weights(weight: Any, algorithm: winograd.Winograd) -> Any:
    """te.Tensor [G, 3, C / G, 3, F] -> [G, m + 2, C / G, 3, F]."""
    from tvm import te

    groups, taps, *rest = (int(extent) for extent in weight.shape)

    def transformed(g: Any, k: Any, *at: Any) -> Any:
        column = [weight[(g, tap, *at)] for tap in range(taps)]
        return winograd.pick(k, algorithm.transform_taps(column))

    return te.compute((groups, algorithm.inputs, *rest), transformed, name=blocks.TILE_WEIGHTS)


def pack(weight: Any, groups: int) -> Any:
    """OIHW array [G * F, C / G, 3, 3] -> [G, 3, C / G, 3, F]: taps down, a channel, taps across.

    Args:
        weight: The array.
        groups: G.
    """
    shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
    return weight.reshape(shape).transpose(0, 3, 2, 4, 1).copy()


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """Register blocks of features x vectors, and whether the three taps are unrolled."""
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    iters = list(sch.get(sch.get_sblock(stage.anchor, func_name="main")).iter_vars)
    _, groups, chunks, points, features, vectors = (int(var.dom.extent) for var in iters[:6])
    tiles = register_blocks(features, vectors, machine)

    # Each step of the reduction loads v vectors and f weights for f * v multiply-adds.
    def cost(tile: tuple[int, int]) -> float:
        f, v = tile
        loads = SPLIT_LOADS * v + math.ceil(f / machine.weights_a_load)
        return loads / (f * v) + (0.2 if f * v < 8 else 0.0)

    code = {f * 100 + v: (f, v) for f, v in sorted(tiles, key=cost)[:8]}
    knobs = (Knob("tile", tuple(code), next(iter(code))), Knob("unroll_taps", (0, 1), 0))

    def place(sch: Any, choose: Choose, columns: int) -> Placed:
        plan = (code[choose("tile")], bool(choose("unroll_taps")))
        return _place(sch, stage, machine, (columns, chunks, points - winograd.TAPS + 1), plan)

    return Part(knobs, place=place, columns=(groups,), groups=groups)


def _place(
    sch: Any,
    stage: Stage,
    machine: Machine,
    cut: tuple[int, int, int],
    plan: tuple[tuple[int, int], bool],
) -> Placed:
    (groups, chunks, outputs), (tile, unroll_taps) = cut, plan
    conv, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    n, c, y, x = sch.get_loops(out)
    g, f = sch.split(c, [groups, None])
    chunk, row, m = sch.split(y, [chunks, None, outputs])
    finish_softmax = None
    if stage.softmax is None:
        # The rows of a tile side by side: they share most of their sums.
        across, lane = sch.split(x, [None, blocks.whole(int(sch.get(x).extent), machine.lanes)])
        pairs = 2 * outputs <= machine.chains and int(sch.get(across).extent) % 2 == 0
        across, pair = sch.split(across, [None, 2 if pairs else 1])
        sch.reorder(n, g, chunk, f, row, across, pair, m, lane)
        sch.unroll(pair)
        sch.unroll(m)
        sch.vectorize(lane)
    else:
        sch.reorder(n, g, chunk, row, m, f, x)
        finish_softmax = place_rows(sch, stage.softmax, m, machine, innermost=False)
        blocks.vectorize_innermost(sch, out, machine.lanes)
    column = sch.fuse(n, g)
    columns = int(sch.get(column).extent)
    sch.compute_at(conv, chunk, preserve_unit_loops=True)
    (slab,) = (sch.get_sblock(pad, func_name="main") for pad in stage.pads)
    sch.compute_at(slab, chunk, preserve_unit_loops=True)
    _fill_slab(sch, slab, machine.lanes)
    (weights,) = winograd.weight_transforms(sch, conv)

    def finish() -> None:
        if finish_softmax is not None:
            finish_softmax()
        _transform_weights(sch, weights, sch.get_loops(conv)[0], columns)
        *_, k, f, vector, lane, rc, rx = sch.get_loops(conv)
        f_out, f_in = sch.split(f, [None, tile[0]])
        v_out, v_in = sch.split(vector, [None, tile[1]])
        sch.reorder(k, v_out, f_out, rc, rx, f_in, v_in, lane)
        if unroll_taps:
            sch.unroll(rx)
        blocks.accumulate_in_registers(sch, conv, f_out, rc, [f_in, v_in, lane])

    return Placed(column, chunk, finish)


def _fill_slab(sch: Any, slab: Any, lanes: int) -> None:
    """Zero the slab, then transform what lies inside the map, all points of a vector at once."""
    # Around the slab's own loops are those over columns and jobs.
    zeros = sch.decompose_padding(slab, sch.get_loops(slab)[2])
    *_, points, outer, inner, axis = sch.get_loops(slab)
    across, lane = sch.split(axis, [None, blocks.whole(int(sch.get(axis).extent), lanes)])
    sch.reorder(outer, inner, across, points, lane)
    sch.unroll(points)
    sch.vectorize(lane)
    # Of one line; TVM does not find out that indices of more axes are contiguous.
    fused = sch.fuse(*sch.get_loops(zeros)[-2:])
    length = blocks.vector_length(int(sch.get(fused).extent), lanes)
    _, lane = sch.split(fused, [None, length])
    sch.vectorize(lane)


def _transform_weights(sch: Any, weights: Any, job: Any, columns: int) -> None:
    """By a job for its column; jobs that share a column would each transform the same ones.

    All points of a weight are computed at once: they share their sums. LLVM makes vectors of them,
    which may have any length, and Tensor IR's would have to divide it.
    """
    if int(sch.get(job).extent) == columns:
        sch.compute_at(weights, job, preserve_unit_loops=True)
    else:
        sch.parallel(sch.get_loops(weights)[0])
    *_, points, channel, tap, feature = sch.get_loops(weights)
    sch.reorder(channel, tap, feature, points)
    sch.fuse(channel, tap, feature)
    sch.unroll(points)
