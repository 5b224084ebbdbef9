# SPDX-License-Identifier: Apache-2.0
"""Steps that every kernel family's schedule is made of."""

from typing import Any

# Scope of a register tile. TVM puts a "global" buffer below 1 KB on the stack, where LLVM turns it
# into registers; a "local" one goes to the heap workspace, and every tile is then stored twice.
REGISTERS = "global"

# Registers of an element-wise block that are computed in one round of its loop.
_SIDE_BY_SIDE = 8

# Names by which `stages` tells what a family's block is for; TVM makes them unique with digits.
SLAB = "slab"  # the input, padded or transformed, as a reduction reads it
TILE_OUTPUTS = "tile_outputs"  # stands between a reduction and what finishes it
TILE_WEIGHTS = "tile_weights"  # weights that the kernel transforms
SOFTMAX = "softmax"  # begins the names of a softmax's parts
CONV2D_CHANNELS = "conv2d_channels"  # a sum over channels that may read a map where it lies

# tvm.tirx.IterVar kinds.
SPATIAL, REDUCED = 0, 2


def names(sch: Any) -> list[str]:
    """Names of the blocks under the root of `main`, in order."""
    return [str(sch.get(block).name_hint) for block in sch.get_child_blocks(root(sch))]


def root(sch: Any) -> Any:
    """The root block of `main`."""
    return sch.get_sblock("root", func_name="main")


def output(sch: Any) -> Any:
    """The one block that writes the kernel's result."""
    (block,) = sch.get_output_blocks(root(sch))
    return block


def divisors(number: int, most: int | None = None) -> list[int]:
    """Divisors in ascending order, up to `most`."""
    bound = number if most is None else min(most, number)
    return [step for step in range(1, bound + 1) if number % step == 0]


def vector_length(extent: int, lanes: int, widest: int = 4) -> int:
    """The longest power of two that divides `extent`, up to `widest` registers."""
    length = 1
    while extent % (length * 2) == 0 and length * 2 <= lanes * widest:
        length *= 2
    return length


def tile_length(extent: int, lanes: int, widest: int = 4) -> int:
    """The divisor of `extent` that fills registers best: up to `widest` of them, whole ones first.

    A half or a quarter of a register is better than an odd rest, which LLVM computes bit by bit.
    """
    return max(
        divisors(extent, widest * lanes),
        key=lambda d: (d % lanes == 0, d % max(lanes // 2, 1) == 0, d % 4 == 0, d),
    )


def whole(extent: int, lanes: int) -> int:
    """Elements computed at once: a vector, else the longest divisor of an axis up to four vectors.

    LLVM splits an odd vector into whole ones; several at once cost a Cortex-A72 spills.
    """
    return lanes if extent % lanes == 0 else max(divisors(extent, 4 * lanes))


def vectorize_innermost(sch: Any, block: Any, lanes: int) -> None:
    """Vectorise the innermost loop of an element-wise block, several registers side by side.

    A SiLU is a chain of 80 cycles on a Cortex-A72 whose 128 places to reorder do not hold two
    rounds of a loop: what hides the chain is the work of `_SIDE_BY_SIDE` registers in one round.

    An extent that is no number of registers (93 channels, 7 pixels) is one odd vector when it is
    short: LLVM splits it where no value is carried around a loop.
    """
    loop = sch.get_loops(block)[-1]
    extent = int(sch.get(loop).extent)
    if extent % lanes == 0:
        together = divisors(extent // lanes, _SIDE_BY_SIDE)[-1]
        _, registers, lane = sch.split(loop, [None, together, lanes])
        sch.unroll(registers)
        sch.vectorize(lane)
        return
    length = max(step for step in divisors(extent, 4 * lanes))
    if length > 1:
        _, lane = sch.split(loop, [None, length])
        sch.vectorize(lane)


def finish_side_by_side(sch: Any, block: Any, lanes: int) -> None:
    """Vectorise the end of a stage over channels, or over pixels beside them.

    Like `vectorize_innermost`, but where no round of several registers divides the channels (372
    are 93 registers), pixels are computed beside each other. All are computed before the first is
    stored: LLVM starts no load behind a store that may be to the same place, so that the chains
    would run one after the other (44 cycles for a register of SiLU, 21 so).
    """
    pixels, channels = sch.get_loops(block)[-2:]
    extent, count = (int(sch.get(loop).extent) for loop in (channels, pixels))
    beside = divisors(count, _SIDE_BY_SIDE)[-1]
    together = 0 if extent % lanes else divisors(extent // lanes, _SIDE_BY_SIDE)[-1]
    # Two registers a round stay: seven pixels beside them cost a Zen 3 core 7 % of a kernel.
    if beside == 1 or together not in {1, 3}:
        vectorize_innermost(sch, block, lanes)
        return
    outer, inner = sch.split(pixels, [None, beside])
    registers, lane = sch.split(channels, [None, lanes])
    sch.reorder(outer, registers, inner, lane)
    results = sch.cache_write(block, 0, REGISTERS)
    sch.reverse_compute_at(results, registers, preserve_unit_loops=True)
    for part in (block, results):
        unroll_and_vectorize(sch, sch.get_loops(part)[-2:])


def unroll_and_vectorize(sch: Any, loops: list[Any]) -> None:
    """A register tile: every loop unrolled, the last one vectorised."""
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])


def accumulate_in_registers(
    sch: Any, block: Any, at: Any, reduction: Any, tile: list[Any], written: int | None = None
) -> None:
    """Keep a tile of sums in registers: zeroed before, written back once after the reduction.

    Args:
        sch: The schedule.
        block: What is summed; its loops are in order.
        at: The loop whose rounds each compute one tile.
        reduction: The outermost loop of the sum.
        tile: The loops over the tile, innermost; the last becomes a vector.
        written: Loops of the write-back that are unrolled, the vector included; as many as the
            tile has by default.
    """
    registers = sch.cache_write(block, 0, REGISTERS)
    sch.reverse_compute_at(registers, at, preserve_unit_loops=True)
    unroll_and_vectorize(sch, tile)
    init = sch.decompose_reduction(block, reduction)
    unroll_and_vectorize(sch, sch.get_loops(init)[-len(tile) :])
    unroll_and_vectorize(sch, sch.get_loops(registers)[-(written or len(tile)) :])
