# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution of stride 1 in NHWC by Winograd in both axes, channels as the vector axis.

    d: the (a + 2) x (b + 2) pixels that a tile of a x b outputs reads, zeros outside the map
    slab[p, t, c]  = (B^T d B)[p]                                 p: one of (a + 2)(b + 2) points
    acc[g, p, t, o, l] = sum over c of slab[p, t, g*C + c] * u[g, p, o / V, c, o % V, l]
    tile_outputs[g, y, x, o, l] = (A^T acc[g, :, t, o, l] A)[y % a, x % b]

Where a core has a second-level cache of its own, the kernel computes u,

    u[g, p, o, c, v, l] = (G w G^T)[p],    w: the 3 x 3 taps of a channel and a feature

and the library holds 9 numbers of a channel and a feature, not one a point. A job that computes a
column does so for V vectors of features at a time. Elsewhere u is packed.
Each point is a product of matrices of its own, [tiles x channels] x [channels x features], so a
register block is some tiles by V vectors of features, and both operands are read as streams. The
tiles of an odd map hang over its lower and right edges; what they compute there is not copied out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedules import blocks, winograd
from schedules.conv2d_channels import feature_blocks
from schedules.machines import Machine
from schedules.softmax import place_rows
from schedules.space import Choose, Knob, Part
from schedules.stages import Stage
from schedules.winograd import TAPS, Winograd

NAME = "winograd_tiles"

# Most vectors of features that a register block holds.
_VECTORS = 3
# Choices of `by_column`.
_COLUMNS, _ROWS_OF_TILES = 1, 2
# `Machine.spill` of a core whose second-level cache is as dear as this.
_SPILLS = 0.05


@dataclass(frozen=True)
class Tiling:
    """A map cut into tiles.

    Attributes:
        rows: The algorithm down the map.
        cols: The algorithm across.
        height: Rows of the map.
        width: Pixels of a row.
    """

    rows: Winograd
    cols: Winograd
    height: int
    width: int

    @property
    def points(self) -> int:
        """Products of a tile for a channel and a feature."""
        return self.rows.inputs * self.cols.inputs

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles down and across."""
        return -(-self.height // self.rows.outputs), -(-self.width // self.cols.outputs)


# F(4x4) would have 36 points for 24: on a Cortex-A72 1 % less of a kernel at 14 pixels, half as
# many weights again, and four times the error (4e-6 to 8e-6 of the largest output).
_SHAPES = ((winograd.F4, winograd.F2), (winograd.F2, winograd.F4), (winograd.F2, winograd.F2))
# What a point of transformed weights costs, in multiply-adds: its share of the sums, and a store
# that misses the first-level cache (a Zen 4 core at 7 pixels).
_POINT_COST = 4
# What the transforms may cost, as a share of a direct convolution.
_TRANSFORMS = 0.1
# What the packed weights of a convolution may be larger, so that a library stays within about a
# megabyte of its network's weights. At 7 pixels tiles would be faster, and the weights of one
# convolution 1 to 2 MB larger (benchmarks/NOTES.md).
_MOST_EXTRA_BYTES = 256 * 1024
# Of a core's second-level cache, for the weights that a kernel transforms at a time. At 7 pixels
# three vectors of features (428 KB with AVX-512) took 5 % longer than one on a Zen 4 core.
_SHARE = 2
_FLOAT_BYTES = 4


def transforms_weights(machine: Machine) -> bool:
    """Whether kernels transform their weights, or `pack` does.

    A core's own second-level cache has room for transformed weights, and the library is smaller.
    """
    return machine.l2_bytes > 0


def tiling_for(
    shape: Sequence[int], kernels: Sequence[int], groups: int, machine: Machine
) -> Tiling | None:
    """The tiles with the least work, or None where a direct convolution has no more.

    A vector of weights is multiplied with all tiles of a map, once, or with all pixels for each of
    nine taps. Where these are too few to hide its way from memory, that is what it costs: larger
    tiles have more weights. Where a kernel transforms its weights, it is read once a tap, and each
    point costs a transform.

    Args:
        shape: N, H, W, C of the map.
        kernels: O, I, 3, 3 of the weights.
        groups: Columns.
        machine: What waits for the weights, and transforms them or not.
    """
    batch, height, width, _ = shape
    wait = machine.weights_wait * machine.threads
    transform = _POINT_COST if transforms_weights(machine) else 0
    tilings = [
        tiling
        for tiling in (Tiling(rows, cols, height, width) for rows, cols in _SHAPES)
        if _holds(tiling, kernels, batch * groups, machine)
    ]

    def cost(tiling: Tiling) -> float:
        down, across = tiling.grid
        return tiling.points * (max(down * across, wait) + transform)

    if not tilings:
        return None
    best = min(tilings, key=cost)
    direct = TAPS * TAPS * max(height * width, wait)
    return best if cost(best) < (1 - _TRANSFORMS) * direct else None


def _holds(tiling: Tiling, kernels: Sequence[int], columns: int, machine: Machine) -> bool:
    """Whether transformed weights are small enough for where they are kept."""
    features, channels = kernels[:2]
    tap_bytes = features * channels * _FLOAT_BYTES
    if not transforms_weights(machine):
        return tap_bytes * (tiling.points - TAPS * TAPS) <= _MOST_EXTRA_BYTES
    # Fewer columns than threads are no jobs of their own: all weights are transformed first.
    together = columns < machine.threads
    kept = _most_vectors(tiling.points, channels, machine) > 0
    return kept and (not together or tap_bytes * tiling.points * _SHARE <= machine.l2_bytes)


def _most_vectors(points: int, channels: int, machine: Machine) -> int:
    """Vectors of features whose transformed weights are kept together; 0 where one is too many."""
    if not transforms_weights(machine):
        return _VECTORS
    vector_bytes = points * channels * machine.lanes * _FLOAT_BYTES
    return min(_VECTORS, machine.l2_bytes // _SHARE // vector_bytes)


def conv2d(x: Any, weight: Any, features: int, tiling: Tiling, machine: Machine) -> Any:
    """The computation.

    Args:
        x: te.Tensor [N, H, W, C].
        weight: te.Tensor from `pack`.
        features: F, output channels a column before padding to O * L.
        tiling: Of the map.
        machine: Decides who transforms the weights.

    Returns:
        te.Tensor [N, H, W, G * F].
    """
    from tvm import te, tirx

    batch, height, width, channels = (int(extent) for extent in x.shape)
    if transforms_weights(machine):
        weight = _transformed_weights(weight, tiling)
    groups, points, panels, per_group, vectors, lanes = (int(extent) for extent in weight.shape)
    rows, cols, (down, across) = tiling.rows, tiling.cols, tiling.grid

    def transformed_rows(n: Any, ty: Any, i: Any, q: Any, c: Any) -> Any:
        def read(row: Any) -> Any:
            return x[n, row, q - 1, c]

        values = winograd.transformed_rows(rows, read, ty, height, x.dtype)
        inside = tirx.all(q >= 1, q < width + 1)
        return tirx.if_then_else(inside, winograd.pick(i, values), tirx.const(0.0, x.dtype))

    reach = across * cols.outputs + TAPS - 1
    strip = te.compute(
        (batch, down, rows.inputs, reach, channels), transformed_rows, name=f"{blocks.SLAB}_rows"
    )

    def transformed(n: Any, p: Any, t: Any, c: Any) -> Any:
        i, j = p // cols.inputs, p % cols.inputs
        first = t % across * cols.outputs
        line = [strip[n, t // across, i, first + k, c] for k in range(cols.inputs)]
        return winograd.pick(j, cols.transform_inputs(line))

    slab = te.compute((batch, points, down * across, channels), transformed, name=blocks.SLAB)
    rc = te.reduce_axis((0, per_group), "rc")

    def product(n: Any, g: Any, p: Any, t: Any, o: Any, lane: Any) -> Any:
        pixel = slab[n, p, t, g * per_group + rc]
        return te.sum(pixel * weight[g, p, o // vectors, rc, o % vectors, lane], axis=[rc])

    shape = (batch, groups, points, down * across, panels * vectors, lanes)
    acc = te.compute(shape, product, name=NAME)

    def outputs(n: Any, g: Any, y: Any, xx: Any, o: Any, lane: Any) -> Any:
        t = y // rows.outputs * across + xx // cols.outputs
        # Along the rows of points first: one output row of each column of points.
        lines = [
            rows.transform_outputs([
                acc[n, g, i * cols.inputs + j, t, o, lane] for i in range(rows.inputs)
            ])
            for j in range(cols.inputs)
        ]
        found = [
            winograd.pick(xx % cols.outputs, cols.transform_outputs([line[i] for line in lines]))
            for i in range(rows.outputs)
        ]
        return winograd.pick(y % rows.outputs, found)

    area = (down * rows.outputs, across * cols.outputs)
    untiled = te.compute(
        (batch, groups, *area, panels * vectors, lanes), outputs, name=blocks.TILE_OUTPUTS
    )

    def pick(n: Any, y: Any, xx: Any, c: Any) -> Any:
        feature = c % features
        return untiled[n, c // features, y, xx, feature // lanes, feature % lanes]

    return te.compute((batch, height, width, groups * features), pick, name="columns")


def _transformed_weights(weight: Any, tiling: Tiling) -> Any:
    """te.Tensor [G, O / V, C / G, 9, V, L] -> [G, P, O / V, C / G, V, L]."""
    from tvm import te

    groups, panels, per_group, _, vectors, lanes = (int(extent) for extent in weight.shape)

    def transformed(g: Any, p: Any, o: Any, c: Any, v: Any, lane: Any) -> Any:
        columns = [
            tiling.rows.transform_taps([
                weight[g, o, c, i * TAPS + j, v, lane] for i in range(TAPS)
            ])
            for j in range(TAPS)
        ]
        points = [
            point
            for i in range(tiling.rows.inputs)
            for point in tiling.cols.transform_taps([column[i] for column in columns])
        ]
        return winograd.pick(p, points)

    shape = (groups, tiling.points, panels, per_group, vectors, lanes)
    return te.compute(shape, transformed, name=blocks.TILE_WEIGHTS)


def pack(weight: Any, groups: int, tiling: Tiling, machine: Machine) -> Any:
    """OIHW array [G * F, C / G, 3, 3] -> [G, P, O / V, C / G, V, L]; zeros behind F.

    Not transformed where the kernel does it: [G, O / V, C / G, 9, V, L].
    """
    import numpy as np

    out, per_group = weight.shape[:2]
    features, lanes = out // groups, machine.lanes
    outer = feature_blocks(features, lanes)
    down, across = tiling.grid
    most = _most_vectors(tiling.points, per_group, machine)
    _, vectors = _block(down * across, outer, most, machine)
    raw = transforms_weights(machine)
    if not raw:
        weight = winograd.transform_tile_weights(tiling.rows, tiling.cols, weight)
    shape = (groups, features, per_group, TAPS * TAPS if raw else tiling.points)
    padded = np.zeros((groups, outer * lanes, *shape[2:]), dtype=weight.dtype)
    padded[:, :features] = weight.reshape(shape)
    shaped = padded.reshape(groups, outer // vectors, vectors, lanes, *shape[2:])
    return shaped.transpose((0, 1, 4, 5, 2, 3) if raw else (0, 5, 1, 4, 2, 3)).copy()


def _block(tiles: int, outer: int, most: int, machine: Machine) -> tuple[int, int]:
    """Tiles of a register block, and V, its vectors of features: at most `most`.

    Their weights are one stream.
    """
    fitting = [
        (step, vectors)
        for step in blocks.divisors(tiles, machine.accumulators)
        for vectors in blocks.divisors(outer, most)
        if machine.holds(step, vectors)
    ]
    return min(fitting, key=lambda block: (machine.stall(*block), -block[0] * block[1]))


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """Tiles of a register block, channels that are unrolled, and what a job is.

    `by_column` 1 makes a column of the network a job, from its transform to its outputs, 2 a row of
    tiles of it: its products then stay in the first-level cache, for weights that are read once
    more a row. With 0 each step is cut for itself.
    """
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    iters = list(sch.get(sch.get_sblock(stage.anchor, func_name="main")).iter_vars)
    batch, groups, points, tiles, outer, _, per_group = (int(var.dom.extent) for var in iters)
    kept = _most_vectors(points, per_group, machine)
    default, vectors = _block(tiles, outer, kept, machine)
    fitting = [
        step
        for step in blocks.divisors(tiles, machine.accumulators)
        if machine.holds(step, vectors)
    ]
    unrolls = tuple(blocks.divisors(per_group, 4))
    # Four columns at once are 2 MB, of which a Cortex-A72's second-level cache holds one.
    together = 2 if machine.spill >= _SPILLS else int(batch * groups >= machine.threads)
    knobs = (
        Knob("tiles", tuple(fitting[-4:]), default),
        Knob("unroll", unrolls, unrolls[-1]),
        Knob("by_column", (0, 1, 2), together),
    )

    def schedule(sch: Any, choose: Choose) -> None:
        block = (choose("tiles"), vectors, choose("unroll"))
        _schedule(sch, stage, machine, block, choose("by_column"))

    return Part(knobs, schedule)


def _schedule(
    sch: Any, stage: Stage, machine: Machine, block: tuple[int, int, int], by_column: int
) -> None:
    tiles, vectors, unroll = block
    conv, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    (slab,) = (sch.get_sblock(pad, func_name="main") for pad in stage.pads)
    (strip,) = sch.get_producers(slab)
    (untiled,) = sch.get_consumers(conv)

    n, y, x, _ = sch.get_loops(out)
    finish_softmax = None
    if stage.softmax is None:
        blocks.finish_side_by_side(sch, out, machine.lanes)
    else:
        finish_softmax = place_rows(sch, stage.softmax, x, machine, innermost=True)
        blocks.vectorize_innermost(sch, out, machine.lanes)
    sch.parallel(sch.fuse(n, y))
    if finish_softmax is not None:
        finish_softmax()

    tiles_across, points_down, points_across = _tile_shape(sch, strip, slab)
    n, g, y, *_ = sch.get_loops(untiled)
    job = sch.fuse(n, g)
    if by_column == _ROWS_OF_TILES:
        row, _ = sch.split(y, [None, points_down - TAPS + 1])
        job = sch.fuse(job, row)
        tiles = math.gcd(tiles, tiles_across)
    per_group = int(sch.get(conv).iter_vars[-1].dom.extent)
    within = bool(by_column) and per_group % machine.lanes == 0
    weights = winograd.weight_transforms(sch, conv)
    if by_column:
        sch.compute_at(conv, job, preserve_unit_loops=True)
        if within:
            sch.compute_at(slab, job, preserve_unit_loops=True)
    # By a job for its column; rows of tiles would each transform the same ones.
    by_job = by_column == _COLUMNS
    if not by_job:
        for block in weights:
            _transform_weights(sch, block, parallel=True)
    # Before reductions and padded buffers are cut in two: TVM makes no loop parallel over those.
    sch.parallel(job)
    _transform_outputs(sch, untiled, (points_down - TAPS + 1, points_across - TAPS + 1))
    _transform_inputs(sch, slab, strip, machine, parallel=not within)
    _multiply(
        sch, conv, (tiles, vectors, unroll), weights if by_job else [], parallel=not by_column
    )


def _tile_shape(sch: Any, strip: Any, slab: Any) -> tuple[int, int, int]:
    """Tiles across, and the points of a tile down and across."""
    _, down, points_down, _, _ = (int(var.dom.extent) for var in sch.get(strip).iter_vars)
    _, points, tiles, _ = (int(var.dom.extent) for var in sch.get(slab).iter_vars)
    return tiles // down, points_down, points // points_down


def _transform_inputs(sch: Any, slab: Any, strip: Any, machine: Machine, *, parallel: bool) -> None:
    """Rows of pixels, then columns of what came of them, for one vector of channels."""
    across, points_down, points_across = _tile_shape(sch, strip, slab)
    n, p, t, c = sch.get_loops(slab)[-4:]
    i, j = sch.split(p, [points_down, points_across])
    ty, tx = sch.split(t, [None, across])
    channels, lane = sch.split(c, [None, blocks.whole(int(sch.get(c).extent), machine.lanes)])
    sch.reorder(n, ty, channels, i, tx, j, lane)
    sch.compute_at(strip, channels, preserve_unit_loops=True)
    if parallel:
        sch.parallel(sch.fuse(n, ty))
    sch.unroll(j)
    sch.vectorize(lane)
    own = sch.get_loops(strip)[-5:]
    zeros = sch.decompose_padding(strip, own[0])
    *_, i, q, lane = sch.get_loops(strip)
    sch.reorder(q, i, lane)
    sch.unroll(i)
    sch.vectorize(lane)
    sch.vectorize(sch.get_loops(zeros)[-1])


def _transform_weights(sch: Any, weights: Any, *, parallel: bool) -> None:
    """All points of a vector of features at once: they share their sums."""
    g, p, o, c, v, lane = sch.get_loops(weights)[-6:]
    sch.reorder(g, o, c, v, p, lane)
    if parallel:
        sch.parallel(sch.fuse(g, o))
    sch.unroll(p)
    sch.vectorize(lane)


def _multiply(
    sch: Any, conv: Any, block: tuple[int, int, int], weights: list[Any], *, parallel: bool
) -> None:
    """One point after the other, or all points of the features whose `weights` are transformed."""
    tiles, vectors, unroll = block
    n, g, p, t, o, lane, rc = sch.get_loops(conv)[-7:]
    t_out, t_in = sch.split(t, [None, tiles])
    o_out, o_in = sch.split(o, [None, vectors])
    c_out, c_in = sch.split(rc, [None, unroll])
    outer = [o_out, p] if weights else [p, o_out]
    sch.reorder(n, g, *outer, t_out, c_out, c_in, t_in, o_in, lane)
    sch.unroll(c_in)
    for transform in weights:
        sch.compute_at(transform, o_out, preserve_unit_loops=True)
        _transform_weights(sch, transform, parallel=False)
    if parallel:
        sch.parallel(sch.fuse(n, g, p))
    blocks.accumulate_in_registers(sch, conv, t_out, c_out, [t_in, o_in, lane], written=6)


def _transform_outputs(sch: Any, untiled: Any, tile: tuple[int, int]) -> None:
    """All outputs of a tile at once: they share their sums."""
    y, x, o, lane = sch.get_loops(untiled)[-4:]
    ty, i = sch.split(y, [None, tile[0]])
    tx, j = sch.split(x, [None, tile[1]])
    sch.reorder(ty, tx, o, i, j, lane)
    blocks.unroll_and_vectorize(sch, [i, j, lane])
