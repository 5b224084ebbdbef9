# SPDX-License-Identifier: Apache-2.0
"""What the bench asks of a runtime: one adapter file each fulfils this."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tvmattend.frontend.request import ModelRequest
from tvmattend.target import TargetSpec

if TYPE_CHECKING:
    import numpy as np

Arrays = Sequence["np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Setup:
    """What every runtime of a comparison is given; plain data, sent to worker processes.

    Attributes:
        request: The network and its weights.
        directory: This runtime's own scratch directory; converted files go there.
        threads: Threads that an inference may use.
        target: For runtimes that compile ahead of time: this machine.
        records: Record files to look at before the usual places (tvmattend's own).
        use_records: False builds every kernel with its default schedule (tvmattend's own).
        trials: Tuning trials (TVM's own pipeline).
        bundle_format: Of the bundle; empty for the default (tvmattend's own).
    """

    request: ModelRequest
    directory: Path
    threads: int
    target: TargetSpec
    records: tuple[Path, ...] = ()
    use_records: bool = True
    trials: int = 0
    bundle_format: str = ""


class Runtime(Protocol):
    """An adapter, made as `Adapter(setup)`.

    `convert` runs in a process of its own, which ends before anything is timed; all other
    methods run in a second one. So a runtime is timed without the converter's libraries, memory
    and threads beside it.
    """

    def convert(self) -> Mapping[str, int] | None:
        """Write what the runtime loads into the setup's directory.

        Ours gives the number of its kernels by the origin of their schedules.
        """

    def prepare(self) -> None:
        """Load it for that many threads in fp32."""

    def version(self) -> str:
        """Give the runtime's version, after `prepare`."""

    def feed(self, inputs: Arrays) -> None:
        """Put the inputs in place; not timed."""

    def run(self) -> None:
        """Infer once; this is timed."""

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give the outputs of the last run as arrays; not timed."""

    def time(self, count: int) -> list[float]:
        """Run `count` times; give the seconds of each."""


def timed(run: Callable[[], None], count: int) -> list[float]:
    """Call a function `count` times and give the seconds of each call."""
    marks = [time.perf_counter()]
    for _ in range(count):
        run()
        marks.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(marks)]
