# SPDX-License-Identifier: Apache-2.0
"""Cut a fused PrimFunc into stages: what is computed, block by block, and what is kept.

A kernel of one convolution is one stage; a fused DC-AC block has several:

    condense -> embed -> expand ---\\
           \\-> project -------------> gate

Every element-wise block is inlined into its user unless its values are read by something that is
not element-wise (a reduction, a padded copy) or has more elements (a resize, a broadcast), which
would compute them many times over. A block that only moves values, a change of layout, computes
nothing: its readers read its source instead, unless that takes more lines than half of the
first-level cache has. Then it is a stage, and so is the reduction that it reads, if any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedules import blocks
from schedules.machines import Machine

_PADS = (blocks.SLAB, "pad_temp")  # the second are TVM's own
# Blocks of `softmax.softmax`, which belong to the stage that finishes it.
_SOFTMAX = tuple(f"{blocks.SOFTMAX}_{part}" for part in ("max", "exp", "sum", "inverse"))
_MAX, *_, _INVERSE = _SOFTMAX
# What the family of the reduction beside it schedules; no stages of their own.
_OWNED = (*_PADS, *_SOFTMAX, blocks.TILE_OUTPUTS, blocks.TILE_WEIGHTS)
_LINE_BYTES = 64


@dataclass(frozen=True)
class Softmax:
    """The blocks that a softmax keeps, and the block that it reads."""

    maximum: str
    exponential: str
    total: str
    inverse: str
    source: str | None


@dataclass(frozen=True)
class Stage:
    """One buffer that the kernel keeps, and how it comes about.

    Attributes:
        out: The block that writes it.
        anchor: The reduction that `out` finishes; None for an element-wise stage; `out` itself
            where nothing follows the reduction.
        pads: Padded copies that the anchor reads.
        softmax: The softmax that `out` finishes.
    """

    out: str
    anchor: str | None = None
    pads: tuple[str, ...] = ()
    softmax: Softmax | None = None

    @property
    def family(self) -> str:
        """The anchor's name without the digits that make it unique."""
        return "" if self.anchor is None else self.anchor.rstrip("0123456789").rstrip("_")


def cut(sch: Any, machine: Machine) -> tuple[list[Stage], list[str]]:
    """Inline what can be inlined, in place, and describe what remains, in order of computation.

    Args:
        sch: Schedule of the kernel.
        machine: Its first-level cache.

    Returns:
        The stages, and the blocks that were inlined, for `inline` of another schedule.

    Raises:
        ValueError: A stage finishes two reductions that are not a convolution and a softmax, or a
            reduction leaves one number, which has no loop to share or to vectorise.
    """
    for name in blocks.names(sch):
        kinds = {
            int(var.iter_type) for var in sch.get(sch.get_sblock(name, func_name="main")).iter_vars
        }
        if kinds == {blocks.REDUCED}:
            raise ValueError(f"block {name} leaves one number")
    inlined = _inline(sch, machine)
    found = []
    for name in blocks.names(sch):
        if not _is_kept(sch, name):
            continue
        producers = _read_by(sch, name)
        softmax = _softmax(sch, producers)
        reductions = [p for p in producers if _reduces(sch, p) and not _is_kept(sch, p)]
        if _reduces(sch, name):
            reductions = [name]
        if len(reductions) > 1:
            raise ValueError(f"block {name} finishes {', '.join(reductions)}")
        anchor = reductions[0] if reductions else None
        pads = [p for p in _producers(sch, anchor) if p.startswith(_PADS)] if anchor else []
        found.append(Stage(name, anchor, tuple(pads), softmax))
    return found, inlined


def inline(sch: Any, names: Sequence[str]) -> None:
    """Inline blocks of the kernel that another schedule's `cut` named, without a second look."""
    for name in names:
        sch.compute_inline(sch.get_sblock(name, func_name="main"))


def _inline(sch: Any, machine: Machine) -> list[str]:
    inlined = []
    for name in blocks.names(sch):
        consumers = _consumers(sch, name)
        if not _is_map(sch, name) or not consumers:
            continue
        moves = _moves(sch, name)
        if moves and any(_crosses_maps(sch, user, machine) for user in consumers):
            continue
        # Two convolutions would finish in one block where a sigmoid gates features.
        own = _finishes(sch, name)
        crowded = own and any(_finishes(sch, user) - own for user in consumers)
        once = all(_is_map(sch, user) and not _repeats(sch, name, user) for user in consumers)
        if not crowded and (moves or once):
            inline(sch, [name])
            inlined.append(name)
    return inlined


def _finishes(sch: Any, name: str) -> set[str]:
    """Reductions that a block reads directly."""
    return {producer for producer in _read_by(sch, name) if _reduces(sch, producer)}


def _is_kept(sch: Any, name: str) -> bool:
    """Whether a block ends a stage: its buffer is an output, or is read by another stage."""
    if name.startswith(_OWNED):
        return False
    if not _reduces(sch, name):
        return True
    consumers = _consumers(sch, name)
    if any(user.startswith(blocks.TILE_OUTPUTS) for user in consumers):
        return False
    # A job of a reduction is a row or a map in its layout; a change of layout cuts across it.
    return not consumers or any(not _is_map(sch, user) or _moves(sch, user) for user in consumers)


def _softmax(sch: Any, producers: list[str]) -> Softmax | None:
    for name in producers:
        if not name.startswith(_INVERSE):
            continue
        (total,) = _producers(sch, name)
        (exponential,) = _producers(sch, total)
        (maximum,) = [p for p in _producers(sch, exponential) if p.startswith(_MAX)]
        sources = _producers(sch, maximum)
        return Softmax(maximum, exponential, total, name, sources[0] if sources else None)
    return None


def _is_map(sch: Any, name: str) -> bool:
    return not _reduces(sch, name) and not name.startswith(_OWNED)


def _repeats(sch: Any, name: str, user: str) -> bool:
    """Whether a user has more elements than a block, so that it would compute some again."""
    return _elements(sch, user) > _elements(sch, name)


def _elements(sch: Any, name: str) -> int:
    iters = sch.get(sch.get_sblock(name, func_name="main")).iter_vars
    return math.prod(int(var.dom.extent) for var in iters)


def _crosses_maps(sch: Any, name: str, machine: Machine) -> bool:
    """Whether a sum over channels would read a line of more maps than half of L1 holds.

    Its block of a few pixels needs one line of each map, and so does the next block: of 352 maps
    the sums waited longer than a copy takes, of 84 they did not.
    """
    if not name.startswith(blocks.CONV2D_CHANNELS):
        return False
    maps = int(sch.get(sch.get_sblock(name, func_name="main")).iter_vars[-1].dom.extent)
    return maps * _LINE_BYTES > machine.l1_bytes // 2


def _moves(sch: Any, name: str) -> bool:
    """Whether a block permutes the axes of what it reads, and nothing else."""
    from tvm.tirx import Var

    store = sch.get(sch.get_sblock(name, func_name="main")).body
    indices = list(getattr(getattr(store, "value", None), "indices", ()))
    return len(indices) == len(store.indices) > 0 and all(isinstance(i, Var) for i in indices)


def _reduces(sch: Any, name: str) -> bool:
    iters = sch.get(sch.get_sblock(name, func_name="main")).iter_vars
    return any(int(var.iter_type) == blocks.REDUCED for var in iters)


def _producers(sch: Any, name: str) -> list[str]:
    found = sch.get_producers(sch.get_sblock(name, func_name="main"))
    return [str(sch.get(block).name_hint) for block in found]


def _read_by(sch: Any, name: str) -> list[str]:
    """What a block reads, directly or through a block that its reduction's family owns."""
    found = []
    for producer in _producers(sch, name):
        found.append(producer)
        if producer.startswith(blocks.TILE_OUTPUTS):
            found += _producers(sch, producer)
    return found


def _consumers(sch: Any, name: str) -> list[str]:
    found = sch.get_consumers(sch.get_sblock(name, func_name="main"))
    return [str(sch.get(block).name_hint) for block in found]
