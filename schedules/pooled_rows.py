# SPDX-License-Identifier: Apache-2.0
"""A stage that is computed within the jobs of the pool that reads it.

    for each row: stage    for each row: pool    ->    for each row of the pool: stage, pool

Windows that do not overlap need no row twice, and the rows of a window, which stay in the cache,
take the place of a map that fills half of the second-level one (552 KB in front of stage 3).
"""

from collections.abc import Sequence
from typing import Any

from schedules import blocks
from schedules.space import Knob, Part
from schedules.stages import Stage

KNOB = "pooled"


def pairs(sch: Any, found: Sequence[Stage], parts: Sequence[Part]) -> dict[int, int]:
    """For the place of each pool that can do so, the place of the stage that feeds it.

    Args:
        sch: Schedule whose blocks were cut into `found`.
        found: The stages.
        parts: The part of each.
    """
    return {
        index: index - 1
        for index in range(1, len(found))
        if parts[index].host is not None
        and parts[index - 1].feed is not None
        and _pools(sch, found[index - 1], found[index])
    }


def knob() -> Knob:
    """Whether it is done so; by default it is."""
    return Knob(KNOB, (0, 1), 1)


def _pools(sch: Any, stage: Stage, pool: Stage) -> bool:
    """Whether one stage is all that another reads, in windows of rows and columns side by side."""
    if pool.anchor is None or pool.pads:
        return False
    out = sch.get_sblock(stage.out, func_name="main")
    readers = [str(sch.get(block).name_hint) for block in sch.get_consumers(out)]
    if readers != [pool.anchor]:
        return False
    anchor = sch.get(sch.get_sblock(pool.anchor, func_name="main"))
    kept, summed = (
        [int(var.dom.extent) for var in anchor.iter_vars if int(var.iter_type) == kind]
        for kind in (blocks.SPATIAL, blocks.REDUCED)
    )
    shape = [int(extent) for extent in sch.get(out).writes[0].source.shape]
    if not len(kept) == len(shape) == 4 or len(summed) != 2:
        return False
    return shape == [kept[0], kept[1] * summed[0], kept[2] * summed[1], kept[3]]
