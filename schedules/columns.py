# SPDX-License-Identifier: Apache-2.0
"""Stages of a kernel that are computed column by column.

    for each stage: for each column: ...     ->     for each column: for each stage: ...

Grouped convolutions, poolings and sums keep the columns of AttendNeXt apart. Computed one column
after the other, what lies between two such stages is a column of a map, which stays in the
second-level cache where the whole map would not, and one parallel region takes the place of one a
stage. A run of stages ends where columns mix: at a softmax over the channels, at a convolution that
reads all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schedules.machines import Machine
from schedules.space import Knob, Part, Placed
from schedules.stages import Stage

KNOB = "columns"


@dataclass(frozen=True)
class Run:
    """Stages that can be computed column by column.

    Attributes:
        stages: Their places in the kernel, one behind the other; two at least.
        columns: Of an image.
        jobs: Columns of all images.
    """

    stages: range
    columns: int
    jobs: int


def runs(sch: Any, found: Sequence[Stage], parts: Sequence[Part], machine: Machine) -> list[Run]:
    """The longest runs of a kernel's stages.

    Args:
        sch: Schedule whose blocks were cut into `found`.
        found: The stages.
        parts: The part of each.
        machine: Threads that share the columns.
    """
    result = []
    start = 0
    while start < len(found):
        end, common = start, _cuts(found[start], parts[start])
        while common and (end := end + 1) < len(found):
            both = [
                count
                for count in common
                if count in _cuts(found[end], parts[end]) and parts[end].groups % count == 0
            ]
            if not both or not _keeps_columns(sch, found[start:end], found[end]):
                break
            common = both
        if end - start > 1:
            columns = min(common, key=lambda count: (count % machine.threads, count))
            batch = int(sch.get(_block(sch, found[start].out)).iter_vars[0].dom.extent)
            result.append(Run(range(start, end), columns, batch * columns))
        start = max(end, start + 1)
    return result


def knob(found: Sequence[Run], machine: Machine) -> Knob:
    """Whether the runs are computed so; by default where the columns share out evenly."""
    even = all(run.jobs % machine.threads == 0 for run in found)
    return Knob(KNOB, (0, 1), int(even))


def make_parallel(sch: Any, placed: Mapping[int, Placed], together: Sequence[Run]) -> None:
    """Merge the columns of each run, run jobs in parallel, and finish the stages.

    Args:
        sch: The schedule.
        placed: Stages that were cut into columns, by their places.
        together: Runs to be computed column by column.
    """
    alone = dict(placed)
    for run in together:
        sch.parallel(sch.merge(*(alone.pop(index).column for index in run.stages)))
    for stage in alone.values():
        job = sch.fuse(stage.column, stage.job)
        if int(sch.get(job).extent) > 1:
            sch.parallel(job)
    for stage in placed.values():
        stage.finish()


def _cuts(stage: Stage, part: Part) -> list[int]:
    """Numbers of columns that a stage can be cut into without doing anything twice."""
    if part.place is None or stage.softmax is not None:
        return []
    # A padded copy that all columns read would be made for each.
    return [n for n in part.columns if n > 1 and (part.groups % n == 0 or not stage.pads)]


def _keeps_columns(sch: Any, earlier: Sequence[Stage], stage: Stage) -> bool:
    """Whether what finishes a stage reads earlier ones, if at all, at its own channel.

    What its reduction reads, the part's `groups` tell.
    """
    block = sch.get(_block(sch, stage.out))
    own = block.writes[0].region[1].min
    buffers = [sch.get(_block(sch, other.out)).writes[0].source for other in earlier]
    return stage.out == stage.anchor or all(
        read.region[1].min.same_as(own) and int(read.region[1].extent) == 1
        for read in block.reads
        if any(read.source.same_as(buffer) for buffer in buffers)
    )


def _block(sch: Any, name: str) -> Any:
    return sch.get_sblock(name, func_name="main")
