# SPDX-License-Identifier: Apache-2.0
"""Sums over channels whose weights come from DRAM to several cores at once.

    for each job, some vectors of features:
      for each part of the channels:
        for each block of pixels:
          for each vector o of features:
            acc[o, pixels] += sum over the part's c of x[c, pixels] * w[o, c]

Four Cortex-A72 share 4 bytes a nanosecond: to each comes a vector of weights in 28 cycles. A block
of 7 pixels x 3 vectors wants three of them in the 21 cycles of its multiply-adds when it meets them
first and none afterwards, so that cores wait for DRAM in one of seven passes over a map of 49
pixels, and DRAM for them in the others. A block of one vector by all pixels that registers hold
(28) spends 28 cycles on each, in the first of two passes.

Such a block reads more pixels than weights, and all channels of its pixels are more than the
first-level cache holds; hence the parts.
"""

from typing import Any

from schedules import blocks
from schedules.machines import ARM_LANES, Machine
from schedules.space import Choose, Knob

# Of a block of one vector. Beside them: the vector of weights, three of pixels.
_MOST_PIXELS = 28
# Passes over the weights; more of them outweigh the wait in the first.
_MOST_BLOCKS = 3
# A shorter part spends more on its sums than on its products.
_FEWEST_CHANNELS = 32


def suits(weights: int, pixels: int, channels: int, machine: Machine) -> bool:
    """Whether a convolution waits for its weights.

    Args:
        weights: Floats, with their padding.
        pixels: Of the map.
        channels: Of the map that is read, all columns.
        machine: Lanes and threads.
    """
    waits = machine.lanes == ARM_LANES and machine.registers is None and machine.threads > 1
    return waits and pixels <= _MOST_BLOCKS * _MOST_PIXELS and weights > pixels * channels


def knobs(sch: Any, conv: Any, columns: list[int], machine: Machine) -> tuple[Knob, ...]:
    """Rows x columns of a block, parts of the channels, vectors of features in a job.

    Args:
        sch: The schedule.
        conv: The block of the sums, over rows, columns and channels of the kernel.
        columns: Pixels of a row that a block may have.
        machine: First-level cache, and cores that share the features.
    """
    _, height, _, groups, outer, _, kh, kw, channels = (
        int(var.dom.extent) for var in sch.get(conv).iter_vars
    )
    tiles = {
        (rows, cols)
        for cols in columns
        for rows in {min(height, _MOST_PIXELS // cols), min(height, 2)}
        if 0 < rows * cols <= _MOST_PIXELS
    }
    tile = max(tiles, key=lambda t: (t[0] * t[1], t[1]))
    # With several taps a part of the channels would be that many streams of weights.
    divisors = blocks.divisors(channels) if kh == kw == 1 else [1]
    parts = [1, *(n for n in divisors[1:] if channels // n >= _FEWEST_CHANNELS)]
    block_bytes = 4 * tile[0] * tile[1] * channels
    held = [n for n in parts if block_bytes // n <= machine.l1_bytes // 2]
    share = -(-groups * outer // machine.threads)
    jobs = sorted({min(outer, -(-share // count)) for count in (1, 2, 4)})
    return (
        Knob("tile", tuple(sorted(r * 100 + c for r, c in tiles)), tile[0] * 100 + tile[1]),
        Knob("parts", tuple(parts), 1 if kh * kw > 1 else (held or parts[-1:])[0]),
        Knob("features", tuple(jobs), jobs[-1]),
    )


def schedule(sch: Any, conv: Any, choose: Choose) -> None:
    """Cut the sums into jobs, parts and blocks, and run the jobs in parallel.

    Args:
        sch: The schedule; whatever else computes or reads the sums is scheduled.
        conv: Their block.
        choose: Gives the value of a knob of `knobs`.
    """
    tile, parts, features = choose("tile"), choose("parts"), choose("features")
    # A block's sums in one piece: apart, they would share few sets of the cache.
    sch.transform_layout(conv, ("write", 0), lambda n, y, x, g, o, lane: [n, g, o, y, x, lane])
    n, y, x, g, o, lane, ry, rx, rc = sch.get_loops(conv)[-9:]
    partial, part = None, None
    if parts > 1:
        part, _ = sch.split(rc, [parts, None])
        partial = sch.rfactor(part, 0)
        n, y, x, g, o, lane, part = sch.get_loops(conv)
    even = int(sch.get(y).extent) % (tile // 100) == 0
    y_out, y_in = sch.split(y, [None, tile // 100])
    x_out, x_in = sch.split(x, [None, tile % 100])
    job, vector = sch.split(o, [None, features])
    block = [y_in, x_in, lane]
    if partial is None:
        sch.reorder(n, g, job, y_out, x_out, vector, ry, rx, rc, *block)
    else:
        sch.reorder(n, g, job, part, y_out, x_out, vector, *block)
        sch.compute_at(partial, vector, preserve_unit_loops=True)
        sch.set_scope(partial, 0, blocks.REGISTERS)
    sch.parallel(sch.fuse(n, g, job))
    if not even:  # what the shorter block lacks is then known
        sch.unroll(y_out)
    if partial is None:
        blocks.accumulate_in_registers(sch, conv, vector, ry, block, written=6)
        return
    blocks.unroll_and_vectorize(sch, block)
    zeros = sch.get_loops(sch.decompose_reduction(conv, part))
    blocks.unroll_and_vectorize(sch, zeros[-3:])
    if not even:
        sch.unroll(zeros[-6])
    *_, p, n, y, x, g, o, lane, ry, rx, rc = sch.get_loops(partial)
    sch.reorder(ry, rx, rc, p, n, y, x, g, o, lane)
    tile_loops = [p, n, y, x, g, o, lane]
    blocks.unroll_and_vectorize(sch, tile_loops)
    start = sch.decompose_reduction(partial, ry)
    blocks.unroll_and_vectorize(sch, sch.get_loops(start)[-len(tile_loops) :])
