# SPDX-License-Identifier: Apache-2.0
"""PrimFunc and target -> its design space, made of the spaces of its stages."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from schedules import (
    average_pool,
    blocks,
    columns,
    conv2d_channels,
    conv2d_pixels,
    dense,
    elementwise,
    pooled_rows,
    reduction,
    softmax,
    stages,
    winograd_pixels,
    winograd_tiles,
)
from schedules.machines import Machine, machine_of
from schedules.space import Choose, DesignSpace, Knob, Part
from schedules.stages import Stage

PLAIN = "plain"

# Of a knob, in a kernel of several stages.
_CHOICES_A_STAGE = 4

_BY_ANCHOR: dict[str, Callable[[Any, Stage, Machine], Part]] = {
    conv2d_pixels.NAME: conv2d_pixels.part,
    conv2d_channels.NAME: conv2d_channels.part,
    winograd_pixels.NAME: winograd_pixels.part,
    winograd_tiles.NAME: winograd_tiles.part,
    average_pool.NAME: average_pool.part,
    dense.NAME: dense.part,
}


def space_for(mod: Any, target: Any) -> DesignSpace:
    """The design space of a kernel.

    Args:
        mod: An IRModule whose only function is the PrimFunc `main`.
        target: A `tvm.target.Target` of kind `llvm`.

    Returns:
        The product of its stages' spaces; for a kernel that cannot be cut into stages of known
        families, the family `plain` (one point, no transformation: correct, not fast).
    """
    from tvm import s_tir

    sch, machine = s_tir.Schedule(mod), machine_of(target)
    if len(sch.get_output_blocks(blocks.root(sch))) != 1:
        return _plain()
    try:
        found, inlined = stages.cut(sch, machine)
    except ValueError:  # reductions that no family schedules
        return _plain()
    parts = [_part(sch, stage, machine) for stage in found]
    if len(found) > 1:
        parts = [replace(part, knobs=tuple(map(_fewer, part.knobs))) for part in parts]
    counts = Counter(_family(stage) for stage in found)
    names = [name if count == 1 else f"{count}*{name}" for name, count in counts.items()]

    label = _label if len(found) > 1 else _alone
    knobs = tuple(
        Knob(label(index, knob.name), knob.choices, knob.default)
        for index, part in enumerate(parts)
        for knob in part.knobs
    )
    runs = columns.runs(sch, found, parts, machine)
    if runs:
        knobs = (*knobs, columns.knob(runs, machine))
    feeders = pooled_rows.pairs(sch, found, parts)
    if feeders:
        knobs = (*knobs, pooled_rows.knob())

    def schedule(sch: Any, choose: Choose) -> None:
        stages.inline(sch, inlined)
        views = [_within(choose, partial(label, index)) for index in range(len(parts))]
        together = runs if runs and choose(columns.KNOB) else []
        fed_by = feeders if feeders and choose(pooled_rows.KNOB) else {}
        _schedule(sch, parts, views, together, fed_by)

    return DesignSpace("+".join(names), knobs, schedule)


def _label(index: int, name: str) -> str:
    return f"{index}.{name}"


def _alone(index: int, name: str) -> str:
    del index
    return name


def _schedule(
    sch: Any,
    parts: Sequence[Part],
    views: Sequence[Choose],
    together: Sequence[columns.Run],
    fed_by: Mapping[int, int],
) -> None:
    placed = {}
    for index, (part, own) in enumerate(zip(parts, views, strict=True)):
        if index in fed_by.values():
            continue
        if index in fed_by:
            feeder = fed_by[index]
            _host(sch, part, own, parts[feeder], views[feeder])
        elif part.place is not None:
            count = next((run.columns for run in together if index in run.stages), None)
            placed[index] = part.place(sch, own, count or part.columns[0])
        elif part.schedule is not None:
            part.schedule(sch, own)
    columns.make_parallel(sch, placed, together)


def _host(sch: Any, pool: Part, own: Choose, feeder: Part, feeders: Choose) -> None:
    """Schedule a pool with the stage that feeds it."""
    host, feed = pool.host, feeder.feed
    assert host is not None and feed is not None  # noqa: S101, PT018  (they are a pair for that)
    host(sch, own, lambda job: feed(sch, feeders, job))


def _fewer(knob: Knob) -> Knob:
    """The default and its nearest neighbours: the choices of several stages multiply."""
    place = knob.choices.index(knob.default)
    first = max(0, min(place - 1, len(knob.choices) - _CHOICES_A_STAGE))
    return replace(knob, choices=knob.choices[first : first + _CHOICES_A_STAGE])


def _within(choose: Choose, label: Callable[[str], str]) -> Choose:
    """A stage's view of the kernel's decisions."""
    return lambda name: choose(label(name))


def _part(sch: Any, stage: Stage, machine: Machine) -> Part:
    if stage.family in _BY_ANCHOR:
        return _BY_ANCHOR[stage.family](sch, stage, machine)
    if stage.anchor is not None:
        return reduction.part(stage, machine)
    if stage.softmax is not None:
        return softmax.part(sch, stage, machine)
    return elementwise.part(sch, stage, machine)


def _family(stage: Stage) -> str:
    if stage.family in _BY_ANCHOR:
        return stage.family
    if stage.anchor is not None:
        return "reduction"
    return "elementwise" if stage.softmax is None else "softmax"


def _plain() -> DesignSpace:
    def schedule(sch: Any, choose: Choose) -> None:
        del sch, choose

    return DesignSpace(PLAIN, (), schedule)
