# SPDX-License-Identifier: Apache-2.0
"""Steps that every kernel family's schedule is made of."""

from collections.abc import Iterable
from typing import Any

# Scope of a register tile. TVM puts a "global" buffer below 1 KB on the stack, where LLVM turns it
# into registers; a "local" one goes to the heap workspace, and every tile is then stored twice.
REGISTERS = "global"

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


def inline_all_but(sch: Any, kept: Iterable[str]) -> None:
    """Inline every block, element-wise stages forward into their users, but the ones named."""
    keep = {*kept, str(sch.get(output(sch)).name_hint)}
    for name in names(sch):
        if name not in keep:
            sch.compute_inline(sch.get_sblock(name, func_name="main"))


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


def vectorize_innermost(sch: Any, block: Any, lanes: int) -> None:
    """Vectorise the innermost loop of an element-wise block in registers that it fills.

    An extent with no such divisor (93 channels, 7 pixels) is one odd vector when it is short: LLVM
    splits it where no value is carried around a loop.
    """
    loop = sch.get_loops(block)[-1]
    extent = int(sch.get(loop).extent)
    length = vector_length(extent, lanes)
    if length < lanes:
        length = max(step for step in divisors(extent, 4 * lanes))
    if length == 1:
        return
    _, inner = sch.split(loop, [None, length])
    sch.vectorize(inner)


def unroll_and_vectorize(sch: Any, loops: list[Any]) -> None:
    """A register tile: every loop unrolled, the last one vectorised."""
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])
