# SPDX-License-Identifier: Apache-2.0
"""This machine as a bench: kernels run in a worker process, between two looks at the machine."""

import signal
from pathlib import Path

from tvmattend.device.conditions import conditions_from, disturbance
from tvmattend.device.serving.conditions import file_reader, read_conditions, vcgencmd
from tvmattend.tuning import workers
from tvmattend.tuning.bench import CRASHED, Artifact, Outcome, Repetition
from tvmattend.tuning.own_faults import killed_error, own_fault
from tvmattend.tuning.pools import DiedError, Worker


class LocalBench:
    """Measures here, in a worker process.

    Args:
        repetition: How often to call a kernel, and the time limit.
        threads: Threads that it runs with.
        place: Directory of the kernels.
    """

    name = "this machine"

    def __init__(self, repetition: Repetition, threads: int, place: Path) -> None:
        self._repetition = repetition
        self._threads = threads
        self._place = place
        self._read, self._firmware = file_reader(), vcgencmd()
        self._worker = Worker(repetition.timeout, quiet=True)

    def run(self, artifact: Artifact, hot_too: bool = False) -> Outcome:
        """Time one kernel (see `Bench.run`).

        Raises:
            StorageError: This machine cannot write.
            TuningError: The worker is killed.
        """
        before = conditions_from(read_conditions(self._read, self._firmware))
        if before.throttled and not hot_too:
            told = {"before": before.to_json()}
            return Outcome("ok", disturbed=before.throttled, rest=True, conditions=told)
        try:
            seconds = self._time(artifact)
        except TimeoutError:
            limit = self._repetition.timeout
            return Outcome("timeout", error=f"measuring took more than {limit:g} s")
        except (OSError, RuntimeError) as error:
            fault = own_fault(error, self._place)
            if fault is not None:
                raise fault from error
            died = isinstance(error, DiedError)
            return Outcome("run-error", error=f"{error}\n{CRASHED}" if died else str(error))
        after = conditions_from(read_conditions(self._read, self._firmware))
        conditions = {"before": before.to_json(), "after": after.to_json()}
        disturbed = disturbance(before, after)
        return Outcome(
            "ok",
            tuple(seconds),
            conditions=conditions if any(conditions.values()) else {},
            disturbed=disturbed,
            rest=bool(disturbed),
        )

    def _time(self, artifact: Artifact, again: bool = True) -> list[float]:
        repetition = self._repetition
        evaluation = {
            "number": repetition.number,
            "repeat": repetition.repeat,
            "min_repeat_ms": repetition.min_repeat_ms,
        }
        arguments = tuple(info.as_json() for info in artifact.args_info)
        try:
            seconds: list[float] = self._worker.call(
                workers.time_local, artifact.path, arguments, evaluation, self._threads
            )
        except DiedError as died:
            if died.code != -signal.SIGKILL:
                raise
            if not again:
                raise killed_error(str(died)) from died
            # Not of a signal that a kernel sends itself: once more, before anything is said.
            seconds = self._time(artifact, again=False)
        return seconds

    def answers(self, seconds: float) -> bool:
        """This machine is always there."""
        del seconds
        return True

    def end(self) -> None:
        """Kill the worker, whatever it runs."""
        self._worker.end()
