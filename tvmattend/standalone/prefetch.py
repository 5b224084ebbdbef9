# SPDX-License-Identifier: Apache-2.0
"""Weights of the next block of features, asked for while this one's are multiplied.

    for o:                                  blocks of features
      for p:                                blocks of pixels
        for c:                              channels and taps
          prefetch(&w[o + 1, (p*C + c) / P])
          acc[p, o] += x[p, c] * w[o, c]

A network's weights are more than a second-level cache holds, so that the first of the passes over
the pixels waits for a block's weights. The lines of the next block are spread over all rounds of
this one's. What is asked for behind the last block is the beginning of the weights that come next.

Where a kernel transforms its weights, it reads them once, in a loop that would wait for them too;
what is multiplied with the transformed ones has the rounds to ask for the next block:

    for o:
      for c:
        u[c] = G w[o, c] G^T
      for p, c:
        prefetch(&w[o + 1, (p*C + c) / P])
        acc[p, o] += x[p, c] * u[c]
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from schedules.machines import Machine
from tvmattend.standalone.statements import children, loads, map_children, uses, walk, with_views

_FLOAT_BYTES = 4
_LINE_FLOATS = 16
# A round of the innermost loop reads a few vectors of a stream. Where rounds are further apart,
# what they read more than once is no stream of weights.
_MOST_STEP = 64
# Of llvm.prefetch: a read, into the second-level cache, of data.
_READ, _SECOND_LEVEL, _DATA = 0, 2, 1
# Of that cache, for the block that comes; this one's and its pixels have the other half.
_SHARE = 2


def prefetch_weights(func: Any, weights: Iterable[int], machine: Machine) -> Any:
    """Add the prefetches to a kernel; none where cores share their second-level cache.

    Args:
        func: A PrimFunc whose buffers are flat, before common subexpressions get names.
        weights: Its parameters that are weights; their sizes are counted as of fp32.
        machine: What runs it.
    """
    if not machine.l2_bytes:
        return func
    given = with_views(func, [func.params[index] for index in weights])
    most = machine.l2_bytes // _SHARE // _FLOAT_BYTES
    reads = {loops: loads(loops[0].body) for loops in _nests(func.body, ())}
    hosts = [loops for loops, read in reads.items() if read and _stores_vectors(loops[0])]
    # By the loop, not by its variable, which copies of an unrolled loop share; one of them asks.
    hints: dict[Any, dict[Any, list[Any]]] = {}
    for loops, read in reads.items():
        for load in read:
            found = _lines_ahead(load, loops, hosts, most) if load.source in given else None
            if found is not None:
                host, lines = found
                hints.setdefault(host, {}).setdefault(load.source, lines)

    def visit(statement: Any) -> Any:
        from tvm import tirx

        inner = map_children(statement, visit)
        if not isinstance(statement, tirx.For) or statement not in hints:
            return inner
        here = [prefetch(line) for lines in hints[statement].values() for line in lines]
        return map_children(inner, lambda body: tirx.SeqStmt([*here, body]))

    return func.with_body(visit(func.body))


def prefetch(element: Any) -> Any:
    """A statement that asks for the cache line of a buffer's element."""
    from tvm import tirx

    address = tirx.address_of(element)
    return tirx.Evaluate(
        tirx.call_intrin("void", "tirx.prefetch", address, _READ, _SECOND_LEVEL, _DATA)
    )


def _nests(statement: Any, around: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The innermost loops of a statement, each with those around it, from the innermost."""
    from tvm import tirx

    loops = (statement, *around) if isinstance(statement, tirx.For) else around
    if loops is not around and _is_innermost(statement):
        return [loops]
    return [nest for child in children(statement) for nest in _nests(child, loops)]


def _is_innermost(loop: Any) -> bool:
    from tvm import tirx

    serial = loop.kind == tirx.ForKind.SERIAL
    return serial and not any(isinstance(node, tirx.For) for node in walk(loop.body))


def _stores_vectors(loop: Any) -> bool:
    """Whether a loop has vectors; where something is asked for, LLVM makes none of scalars."""
    from tvm import tirx

    stores = (node for node in walk(loop.body) if isinstance(node, tirx.BufferStore))
    return any("x" in str(store.value.ty) for store in stores)  # float32x16


def _lines_ahead(
    load: Any, loops: tuple[Any, ...], hosts: Sequence[tuple[Any, ...]], most: int
) -> tuple[Any, list[Any]] | None:
    """One element of each line that a round asks for, of the block behind the one of a load.

    Args:
        load: Of one or more elements.
        loops: Around it, from the innermost.
        hosts: Nests of the kernel that have time to ask for what others read: to fill a buffer
            with zeros takes many rounds too, but none.
        most: Elements of a block that is asked for.

    Returns:
        The loop whose rounds ask, and the elements. None where nothing is asked for.
    """
    from tvm import tirx

    (index,) = load.indices
    first = index.base if isinstance(index, tirx.Ramp) else index
    steps = [_step(first, loop.loop_var) for loop in loops]
    found = _read_once(steps, loops, hosts, most)
    if found is not None:
        place, asking = found
    else:
        stream = _next_block(steps) if 0 < steps[0] <= _MOST_STEP else None
        if stream is None or steps[stream] > most:
            return None
        place, asking = stream, loops[:stream]
    rounds = _rounds(asking)
    if rounds == 0:
        return None
    this_round: Any = 0
    for loop in reversed(asking):
        this_round = this_round * loop.extent + loop.loop_var
    share = -(-steps[place] // rounds)
    inner = {loop.loop_var for loop in loops[:place]}
    following = _at_zero(first, inner) + steps[place]
    if uses(following) & inner:  # by more than sums and products: no plain stream
        return None
    return asking[0], [
        tirx.BufferLoad(load.source, [following + this_round * share + line])
        for line in range(0, share, _LINE_FLOATS)
    ]


def _read_once(
    steps: Sequence[int], loops: tuple[Any, ...], hosts: Sequence[tuple[Any, ...]], most: int
) -> tuple[int, tuple[Any, ...]] | None:
    """The loop that leads to the next block of weights that are read once, and who asks for it.

    That is the innermost loop in which more is done than to read them, and of what is done there
    the loops with the most rounds. None where nothing else is (the head; benchmarks/NOTES.md).

    Args:
        steps: Elements that a round of each loop leads on, from the innermost loop.
        loops: These loops.
        hosts: Nests that may ask.
        most: Elements of a block.
    """
    for place in range(1, len(steps)):
        if 0 in steps[: place + 1] or steps[place] > most:
            return None
        inside = [nest[: nest.index(loops[place])] for nest in hosts if loops[place] in nest]
        asking = max(inside, key=_rounds, default=loops[:place])
        if asking != loops[:place]:
            return place, asking
    return None


def _rounds(nest: Sequence[Any]) -> int:
    """Of nested loops; 0 where one has no constant number."""
    from tvm import tirx

    constant = all(isinstance(loop.extent, tirx.IntImm) for loop in nest)
    return math.prod(int(loop.extent) for loop in nest) if constant else 0


def _next_block(steps: Sequence[int]) -> int | None:
    """Which loop leads to the next block: the first that leads on behind those over pixels.

    Args:
        steps: Elements that a round of each loop leads on, from the innermost loop. Those over
            channels and taps lead through a block, those over pixels nowhere. Where nothing leads
            on behind these, all weights are read for some pixels, and the block is a part of them.
            None where none leads over pixels.
    """
    if 0 not in steps:
        return None
    again = steps.index(0)
    outer = [place for place in range(again, len(steps)) if steps[place]]
    return outer[0] if outer else (again - 1 if again > 1 else None)


def _at_zero(index: Any, variables: set[Any]) -> Any:
    """An index where these variables are zero, as far as it is sums and products."""
    from tvm import tirx

    if isinstance(index, (tirx.Add, tirx.Mul)):
        return type(index)(_at_zero(index.a, variables), _at_zero(index.b, variables))
    return tirx.const(0, str(index.ty)) if index in variables else index


def _step(index: Any, variable: Any) -> int:
    """By how much an index grows with a variable, by its sums and products alone."""
    from tvm import tirx

    if isinstance(index, tirx.Add):
        return _step(index.a, variable) + _step(index.b, variable)
    if isinstance(index, tirx.Mul) and isinstance(index.b, tirx.IntImm):
        return _step(index.a, variable) * int(index.b.value)
    return int(index.same_as(variable))
