# SPDX-License-Identifier: Apache-2.0
"""What a profile sees of a bundle, wherever that runs: calls of kernels, and whole inferences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import tvm

    from tvmattend.target import TargetSpec

Observer = Callable[[str], None]


@dataclass
class Call:
    """One call of one inference.

    Attributes:
        name: The kernel, or a step of it.
        seconds: What it took.
        again: The same call run again on the spot, the best of some; None if it was not.
    """

    name: str
    seconds: float = 0.0
    again: float | None = None


@dataclass(frozen=True)
class Inference:
    """The calls of one inference, in order, and the seconds between them that are accounted for."""

    calls: Sequence[Call]
    builtin: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What was timed.

    Attributes:
        inside: Inferences whose calls were timed.
        spot: Inferences whose calls were run again on the spot, where that is possible.
        whole: Seconds of inferences in which nothing was timed, in turns with `inside`.
    """

    inside: Sequence[Inference]
    spot: Sequence[Inference]
    whole: Sequence[float]


class Profiled(Protocol):
    """A bundle that is loaded somewhere.

    Attributes:
        threads: That run its kernels.
        machine: What it runs on, for `--json`.
        machine_text: The same in a line.
        notes: What a reader must know of that machine.
    """

    threads: int
    machine: dict[str, Any]
    machine_text: str
    notes: tuple[str, ...]

    def look(self, runs: int, observer: Observer) -> Seen:
        """Time so many inferences."""

    def least_seconds(
        self, module: "tvm.IRModule", arrays: "Sequence[np.ndarray[Any, Any]]", target: "TargetSpec"
    ) -> float:
        """Compile a module, and give the least seconds of a call of its `main` there."""

    def others(self) -> float | None:
        """Share of the cores' time that went to other processes so far; None if unknown."""
