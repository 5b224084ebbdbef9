# SPDX-License-Identifier: Apache-2.0
"""This machine as a bench: MetaSchedule's local runner, with the machine's conditions around it.

The runner is called as a plain Python object (`_cls`): through TVM's object layer a Ctrl-C that
arrives inside the callback would be swallowed by C++. Its worker is one of our pool.
"""

import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from tvmattend.device.conditions import conditions_from, disturbance
from tvmattend.device.serving.conditions import file_reader, read_conditions, vcgencmd
from tvmattend.tuning import workers
from tvmattend.tuning.bench import CRASHED, Artifact, Outcome, Repetition
from tvmattend.tuning.own_faults import killed_error, own_fault
from tvmattend.tuning.pools import ENDED, Pool

# Not of a signal that a kernel sends itself: once more, before anything is said.
_KILLED = f"{ENDED}: SIGKILL"


class LocalBench:
    """Measures here, in a worker process.

    Args:
        repetition: How often to call a kernel, and the time limit.
        threads: Threads that it runs with.
        place: Directory of the kernels.
        sysfs: Directory that holds the `/sys` to read; empty for this machine's own.
    """

    name = "this machine"

    def __init__(self, repetition: Repetition, threads: int, place: Path, sysfs: str = "") -> None:
        self._timeout = repetition.timeout
        self._place = place
        self._read, self._firmware = file_reader(sysfs), vcgencmd(sysfs)
        self._pool = Pool(repetition.timeout, processes=1, stderr=subprocess.DEVNULL)
        try:
            self._runner = _runner(repetition, threads, self._pool)
        except BaseException:  # Ctrl-C while the worker starts
            self._pool.end()
            raise

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
        result = self._result(artifact)
        if result.run_secs is None and _KILLED in str(result.error_msg):
            result = self._result(artifact)
        if result.run_secs is None:
            return self._failure(str(result.error_msg))
        after = conditions_from(read_conditions(self._read, self._firmware))
        conditions = {"before": before.to_json(), "after": after.to_json()}
        disturbed = disturbance(before, after)
        return Outcome(
            "ok",
            tuple(float(second) for second in result.run_secs),
            conditions=conditions if any(conditions.values()) else {},
            disturbed=disturbed,
            rest=bool(disturbed),
        )

    def _result(self, artifact: Artifact) -> Any:
        from tvm.s_tir.meta_schedule.runner import RunnerInput

        future = self._runner.run([RunnerInput(artifact.path, "cpu", artifact.args_info)])[0]
        while not future.done():  # polled: a wait inside C++ would be deaf to Ctrl-C
            time.sleep(0.005)
        return future.result()

    def _failure(self, error: str) -> Outcome:
        if _KILLED in error:
            raise killed_error(_KILLED)
        fault = own_fault(error, self._place)
        if fault is not None:
            raise fault
        if "Timeout, killed" in error:
            return Outcome("timeout", error=f"measuring took more than {self._timeout:g} s")
        crashed = ENDED in error
        return Outcome("run-error", error=f"{error}\n{CRASHED}" if crashed else error)

    def answers(self, seconds: float) -> bool:
        """This machine is always there."""
        del seconds
        return True

    def end(self) -> None:
        """Kill the worker, whatever it runs."""
        self._pool.end()


def _runner(repetition: Repetition, threads: int, pool: Pool) -> Any:
    """MetaSchedule's local runner, on a pool of ours from its first job on."""
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, LocalRunner

    class Runner(LocalRunner._cls):  # type: ignore[misc]  # noqa: SLF001
        def _sanity_check(self) -> None:
            self.pool = pool
            super()._sanity_check()

    return Runner(
        timeout_sec=repetition.timeout,
        evaluator_config=EvaluatorConfig(
            number=repetition.number,
            repeat=repetition.repeat,
            min_repeat_ms=repetition.min_repeat_ms,
        ),
        f_alloc_argument=partial(workers.allocate_local, threads=threads),
    )
