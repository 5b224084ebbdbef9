# SPDX-License-Identifier: Apache-2.0
"""What a design space is: named knobs with a default each, and one function that schedules.

A MetaSchedule space is a function that samples decisions while it transforms a schedule. Ours
names its decisions, so that a point can be written in a record (`{"rows": 4, "unroll": 2}`),
enumerated, and compared, and so that a kernel without a record has a default that was reasoned
out instead of a random draw. The decisions go through `sample_categorical`, hence the schedule's
trace holds them and MetaSchedule's builder, runner and cost model take it like any other.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Point = Mapping[str, int]
Choose = Callable[[str], int]

# A tuning run measures a few hundred; the rest of a larger space is only ranked.
_MOST_POINTS = 4096


@dataclass(frozen=True)
class Knob:
    """One decision.

    Attributes:
        name: What is decided, e.g. `rows`.
        choices: The values it may take; never empty.
        default: The value taken where nothing was measured; one of `choices`.
    """

    name: str
    choices: tuple[int, ...]
    default: int

    def __post_init__(self) -> None:
        if self.default not in self.choices:
            raise ValueError(f"default {self.default} of knob {self.name} is not in {self.choices}")


@dataclass(frozen=True)
class Placed:
    """A stage that is cut into columns, each of which is cut into jobs, and not yet parallel.

    Attributes:
        column: The outer loop, over the columns of all images.
        job: The loop in it.
        finish: Schedules what is left. Called after the jobs are made parallel, since TVM makes no
            loop parallel over a reduction whose start is a block of its own.
    """

    column: Any
    job: Any
    finish: Callable[[], None]


Place = Callable[[Any, Choose, int], Placed]
# Computes a stage within a loop, and gives what is left to do once that loop is parallel.
Inner = Callable[[Any], Callable[[], None]]


@dataclass(frozen=True)
class Part:
    """The decisions of one stage of a kernel, and the function that schedules that stage.

    Attributes:
        knobs: The decisions.
        schedule: Schedules the stage, or
        place: cuts its features into so many columns (its last argument), and leaves it to the
            kernel what runs in parallel.
        columns: Numbers of columns that `place` can cut the features into, its own first.
        groups: Columns of the input that no two columns of features share.
        feed: Schedules the stage within a loop of the only stage that reads it, its last argument.
        host: Schedules the stage with another within its jobs.
    """

    knobs: tuple[Knob, ...]
    schedule: Callable[[Any, Choose], None] | None = None
    place: Place | None = None
    columns: tuple[int, ...] = ()
    groups: int = 1
    feed: Callable[[Any, Choose, Any], Callable[[], None]] | None = None
    host: Callable[[Any, Choose, Inner], None] | None = None


@dataclass(frozen=True)
class DesignSpace:
    """All the ways in which one PrimFunc may be scheduled.

    Attributes:
        kernel: The family, e.g. `conv2d_pixels`.
        knobs: The decisions, in the order in which the trace records them.
        schedule: Called with a schedule and a function that gives a knob's value; transforms the
            schedule in place. The same point always gives the same schedule.
    """

    kernel: str
    knobs: tuple[Knob, ...]
    schedule: Callable[[Any, Choose], None]

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(knob.choices) for knob in self.knobs)

    @property
    def default(self) -> dict[str, int]:
        """The point for a kernel without a record."""
        return {knob.name: knob.default for knob in self.knobs}

    def points(self, seed: int) -> Iterator[dict[str, int]]:
        """Every point once: the default first, the others in an order drawn from `seed`.

        Of a space with more than `_MOST_POINTS` points, that many are drawn.
        """
        names = [knob.name for knob in self.knobs]
        draw = random.Random(seed)  # noqa: S311  (a search order, not a secret)
        order = draw.sample(range(self.size), min(self.size, _MOST_POINTS))
        yield self.default
        for index in order:
            point = dict(zip(names, self._values(index), strict=True))
            if point != self.default:
                yield point

    def _values(self, index: int) -> list[int]:
        values = []
        for knob in self.knobs:
            index, position = divmod(index, len(knob.choices))
            values.append(knob.choices[position])
        return values

    def accepts(self, point: Point) -> bool:
        """Whether the point belongs to this space (a record may come from an older one)."""
        return set(point) == {knob.name for knob in self.knobs} and all(
            point[knob.name] in knob.choices for knob in self.knobs
        )

    def apply(self, sch: Any, point: Point) -> None:
        """Schedule in place.

        Args:
            sch: A `tvm.s_tir.Schedule` of a module whose only function is `main`.
            point: A value for every knob.

        Raises:
            ValueError: The point is not of this space.
        """
        if not self.accepts(point):
            raise ValueError(f"{dict(point)} is not a point of the {self.kernel} space")
        decided: dict[str, Any] = {}
        for knob in self.knobs:
            chance = [1.0 / len(knob.choices)] * len(knob.choices)
            decided[knob.name] = sch.sample_categorical(
                list(knob.choices), chance, decision=knob.choices.index(point[knob.name])
            )
        self.schedule(sch, lambda name: int(sch.get(decided[name])))
