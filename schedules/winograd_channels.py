# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution of stride 1 in NHWC by Winograd down the rows, channels as the vector axis.

    slab[g, k, t, q, c] = (B^T d)[k],    d = rows m t - 1 ... m t + m of channel c, at column q - 1
    acc[g, k, t, x, o, l]  = sum over j, c of slab[g, k, t, x + j, c] * u[g, o, k, j, c, l]
    out[m t + i, x, g*F + o*L + l] = (A^T acc[g, :, t, x, o, l])[i]

The counterpart of `conv2d_channels`, whose weights it packs likewise. A job is one column, or some
rows of tiles of one.
"""

from typing import Any

from schedules import blocks, winograd
from schedules.conv2d_channels import feature_blocks
from schedules.machines import Machine
from schedules.softmax import place_rows
from schedules.space import Choose, Knob, Part
from schedules.stages import Stage

NAME = "winograd_channels"


def conv2d(x: Any, weight: Any, features: int) -> Any:
    """The computation.

    Args:
        x: te.Tensor [N, H, W, C], H even.
        weight: te.Tensor [G, O, m + 2, 3, C / G, L] from `pack`.
        features: F, output channels a column before padding to O * L.

    Returns:
        te.Tensor [N, H, W, G * F].
    """
    from tvm import te, tirx

    batch, height, width, _ = (int(extent) for extent in x.shape)
    groups, outer, points, kw, per_group, lanes = (int(extent) for extent in weight.shape)
    algorithm = winograd.algorithm(height)
    tiles = height // algorithm.outputs

    def transformed(n: Any, g: Any, k: Any, t: Any, q: Any, rc: Any) -> Any:
        def read(row: Any) -> Any:
            return x[n, row, q - 1, g * per_group + rc]

        values = winograd.transformed_rows(algorithm, read, t, height, x.dtype)
        inside = tirx.all(q >= 1, q < width + 1)
        return tirx.if_then_else(inside, winograd.pick(k, values), tirx.const(0.0, x.dtype))

    shape = (batch, groups, points, tiles, width + kw - 1, per_group)
    slab = te.compute(shape, transformed, name="slab")
    rx = te.reduce_axis((0, kw), "rx")
    rc = te.reduce_axis((0, per_group), "rc")

    def product(n: Any, g: Any, k: Any, t: Any, xx: Any, o: Any, lane: Any) -> Any:
        return te.sum(slab[n, g, k, t, xx + rx, rc] * weight[g, o, k, rx, rc, lane], axis=[rx, rc])

    acc = te.compute((batch, groups, points, tiles, width, outer, lanes), product, name=NAME)

    def output(n: Any, y: Any, xx: Any, c: Any) -> Any:
        g, f, tile = c // features, c % features, y // algorithm.outputs
        products = [acc[n, g, k, tile, xx, f // lanes, f % lanes] for k in range(points)]
        return winograd.pick(y % algorithm.outputs, algorithm.transform_outputs(products))

    return te.compute((batch, height, width, groups * features), output, name="columns")


def pack(weight: Any, groups: int, height: int, machine: Machine) -> Any:
    """OIHW array [G * F, C / G, 3, 3] -> [G, O, m + 2, 3, C / G, L], transformed, zeros behind F.

    Args:
        weight: The array.
        groups: G.
        height: Rows of the map; decides m.
        machine: Decides L.
    """
    import numpy as np

    out, per_group, _, kw = weight.shape
    features, lanes = out // groups, machine.lanes
    algorithm = winograd.algorithm(height)
    outer = feature_blocks(features, lanes)
    shape = (groups, features, per_group, algorithm.inputs, kw)
    padded = np.zeros((groups, outer * lanes, *shape[2:]), dtype=weight.dtype)
    padded[:, :features] = algorithm.transform_weights(weight).reshape(shape)
    shaped = padded.reshape(groups, outer, lanes, *shape[2:])
    return shaped.transpose(0, 1, 4, 5, 3, 2).copy()


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """Register blocks of columns x vectors, and the rows of tiles that are a job."""
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    iters = list(sch.get(sch.get_sblock(stage.anchor, func_name="main")).iter_vars)
    batch, groups, points, rows, width, outer = (int(var.dom.extent) for var in iters[:6])
    tiles = [
        (cols, vectors)
        for cols in blocks.divisors(width, 14)
        for vectors in blocks.divisors(outer, 4)
        if machine.holds(cols, vectors)
    ]

    # A step loads `vectors` of weights and one scalar a pixel for their product of FMAs.
    def cost(tile: tuple[int, int]) -> float:
        cols, vectors = tile
        return (cols + vectors) / (cols * vectors) + (0.2 if cols * vectors < 8 else 0.0)

    code = {cols * 100 + v: (cols, v) for cols, v in sorted(tiles, key=cost)[:8]}
    by_rows = rows if batch * groups >= machine.threads else 1
    knobs = (
        Knob("tile", tuple(code), next(iter(code))),
        Knob("job_rows", tuple(blocks.divisors(rows)), by_rows),
    )

    def schedule(sch: Any, choose: Choose) -> None:
        tile, job_rows = code[choose("tile")], choose("job_rows")
        _schedule(sch, stage, machine, (groups, points - winograd.TAPS + 1), tile, job_rows)

    return Part(knobs, schedule)


def _schedule(
    sch: Any,
    stage: Stage,
    machine: Machine,
    cut: tuple[int, int],
    tile: tuple[int, int],
    job_rows: int,
) -> None:
    groups, outputs = cut
    conv, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
    n, y, x, c = sch.get_loops(out)
    t_job, t, m = sch.split(y, [None, job_rows, outputs])
    finish_softmax = None
    if stage.softmax is None:
        g, f = sch.split(c, [groups, None])
        features, lane = sch.split(f, [None, blocks.whole(int(sch.get(f).extent), machine.lanes)])
        # The rows of a tile side by side: they share their products.
        sch.reorder(n, g, t_job, t, x, features, m, lane)
        sch.unroll(m)
        sch.vectorize(lane)
        job = sch.fuse(n, g, t_job)
    else:
        # The softmax runs over the channels of all columns.
        sch.reorder(n, t_job, t, m, x, c)
        finish_softmax = place_rows(sch, stage.softmax, x, machine, innermost=True)
        blocks.vectorize_innermost(sch, out, machine.lanes)
        job = sch.fuse(n, t_job)
    sch.compute_at(conv, job, preserve_unit_loops=True)
    (slab,) = (sch.get_sblock(pad, func_name="main") for pad in stage.pads)
    sch.compute_at(slab, job, preserve_unit_loops=True)
    winograd.fill_slab(sch, slab, machine.lanes)
    sch.parallel(job)
    if finish_softmax is not None:
        finish_softmax()

    n, g, k, t, x, o, lane, rx, rc = sch.get_loops(conv)[-9:]
    x_out, x_in = sch.split(x, [None, tile[0]])
    o_out, o_in = sch.split(o, [None, tile[1]])
    sch.reorder(n, g, k, o_out, t, x_out, rx, rc, x_in, o_in, lane)
    registers = sch.cache_write(conv, 0, blocks.REGISTERS)
    sch.reverse_compute_at(registers, x_out, preserve_unit_loops=True)
    blocks.unroll_and_vectorize(sch, [x_in, o_in, lane])
    init = sch.decompose_reduction(conv, rx)
    blocks.unroll_and_vectorize(sch, sch.get_loops(init)[-3:])
    *tile_loops, lane = sch.get_loops(registers)
    sch.vectorize(lane)
    for loop in tile_loops[-4:]:
        sch.unroll(loop)
