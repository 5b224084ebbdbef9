# SPDX-License-Identifier: Apache-2.0
"""The verb `bench`: the same network in several runtimes, outputs first, then times in turns.

Each runtime lives in a worker process that is bound to the same cores and blocked on a pipe while
another has its turn. In one process, thread pools that spin while they wait - OpenMP's, TVM's -
would take the cores from whoever is being timed.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.bench import catalogue
from tvmattend.bench.catalogue import CATALOGUE, FORMATS, OURS, TVM_TUNED, UNTUNED, Entry
from tvmattend.bench.client import Worker
from tvmattend.bench.host import Load, choose_cpus, describe_machine
from tvmattend.bench.report import Absent, Comparison, Result
from tvmattend.bench.runtime import Setup
from tvmattend.bench.timing import Timing, interleave
from tvmattend.errors import BenchmarkError, InputError, TvmattendError
from tvmattend.frontend.request import ModelRequest
from tvmattend.target import TargetSpec

if TYPE_CHECKING:
    import numpy as np

    Arrays = list[np.ndarray[Any, Any]]

Observer = Callable[[str], None]

# fp32 sums in another order differ by 1e-6 of the greatest output; fp16 weights by 1e-3.
TOLERANCE = 1e-3
SAMPLES = 2
# TVM's idle threads yield for 0.1 s and OpenMP's spin for less before they sleep.
_PAUSE_SECONDS = 0.15


@dataclass(frozen=True)
class Options:
    """How a comparison is made.

    Attributes:
        threads: Of every runtime.
        against: Names of runtimes beside ours.
        rounds: Turns of each.
        burst: Seconds of timed inferences in a turn.
        settle: Seconds of warm-up ahead of them: caches, clock, sleeping threads.
        least: Inferences in a turn, however slow.
        trials: Adds `tvm-default-tuned` with that many trials.
        records: Record files for ours.
        use_records: False builds ours without records.
        cpus: Cores to bind to; none chooses the fastest.
    """

    threads: int = 1
    against: tuple[str, ...] = catalogue.AGAINST
    rounds: int = 10
    burst: float = 0.3
    settle: float = 0.1
    least: int = 5
    trials: int = 0
    records: tuple[Path, ...] = ()
    use_records: bool = True
    cpus: tuple[int, ...] = field(default=())

    def check(self, available: Sequence[int], entries: Mapping[str, Entry] = CATALOGUE) -> None:
        """Check what can be checked before anything is started.

        Raises:
            BenchmarkError: A runtime is unknown.
            InputError: A number is out of range.
        """
        for name in self.against:
            catalogue.find(name, entries)
        for option, value, least in (
            ("--threads", self.threads, 1), ("--rounds", self.rounds, 1),
            ("--trials", self.trials, 0),
        ):  # fmt: skip
            if value < least:
                raise InputError(f"{option} {value} is out of range", f"give {least} or more")
        if self.threads > len(available):
            raise InputError(
                f"--threads {self.threads}, but this process may use {len(available)} cores",
                "give as many threads as there are cores, or fewer",
            )
        unusable = sorted(set(self.cpus) - set(available))
        hint = f"name {self.threads} of {', '.join(map(str, sorted(available)))}"
        if unusable:
            named = ", ".join(map(str, unusable))
            raise InputError(f"--cpus names {named}, which this process may not use", hint)
        if self.cpus and len(set(self.cpus)) != self.threads:
            raise InputError(
                f"--cpus names {len(set(self.cpus))} cores for --threads {self.threads}", hint
            )


def compare(
    request: ModelRequest,
    target: TargetSpec,
    options: Options,
    observer: Observer = lambda _: None,
    entries: Mapping[str, Entry] = CATALOGUE,
) -> Comparison:
    """Convert, check and time.

    Args:
        request: The network; every runtime gets these weights.
        target: This machine; for runtimes that compile ahead of time.
        options: Runtimes, threads and rounds.
        observer: Told, in a line, what is being done.
        entries: The runtimes; tests give their own.

    Raises:
        BenchmarkError: A runtime is unknown, or ours cannot be timed.
        InputError: The target is not this machine, or a number is out of range.
        ModelError: The network cannot be loaded.
        WeightsError: The weights do not fit.
    """
    options.check(sorted(os.sched_getaffinity(0)), entries)
    request.check()
    if not target.is_host:
        raise InputError(
            f"{target.cpu} is not this machine: the bench times here", "use --target host"
        )
    chosen, absent = _present(_wanted(options, entries))
    cpus = list(options.cpus) or choose_cpus(options.threads)
    target = replace(target, num_cores=options.threads)
    with tempfile.TemporaryDirectory(prefix="tvmattend-bench-") as name, ExitStack() as stack:
        scratch = Path(name)
        observer("running PyTorch for the reference")
        with Worker(scratch / "reference.log") as worker:
            inputs, wanted = worker.call("reference", request, SAMPLES)
        ready: dict[str, _Ready] = {}
        for entry in chosen:
            setup = setup_for(entry, request, target, options.records, options.use_records, scratch)
            if entry.name == TVM_TUNED:
                setup = replace(setup, trials=options.trials)
            try:
                loaded = _load(entry, setup, cpus, inputs, wanted, observer)
            except TvmattendError as failure:
                if entry.name == OURS:
                    raise
                absent.append(Absent.failed(entry.name, failure))
                continue
            stack.callback(loaded.worker.close)
            if loaded.error > TOLERANCE:
                absent.append(wrong(entry.name, loaded.version, loaded.error))
                loaded.worker.close()
                continue
            ready[entry.name] = loaded
        timings, others = _time(ready, options, cpus, absent, observer)
    if OURS not in timings:
        reason = next(entry.reason for entry in absent if entry.runtime == OURS)
        raise BenchmarkError(f"tvmattend itself was not timed: {reason}", "see --debug")
    return Comparison(
        request.name,
        options.threads,
        describe_machine(cpus),
        tuple(
            Result(key, ready[key].version, timing, ready[key].error, entries[key].peer)
            for key, timing in timings.items()
        ),
        tuple(absent),
        f"torch {metadata.version('torch')}",
        options.rounds,
        others,
        ready[OURS].records,
        options.trials,
    )


@dataclass(frozen=True)
class _Ready:
    """A runtime that is loaded, its version, and by how much its outputs differ; ours: records."""

    worker: Worker
    version: str
    records: Mapping[str, int]
    error: float


def _wanted(options: Options, entries: Mapping[str, Entry]) -> list[Entry]:
    names = [OURS, *options.against, *([TVM_TUNED] if options.trials else [])]
    if TVM_TUNED in options.against and not options.trials:
        raise BenchmarkError(f"{TVM_TUNED} needs a number of trials", "give --trials N")
    return [catalogue.find(name, entries) for name in dict.fromkeys(names)]


def _present(wanted: Sequence[Entry]) -> tuple[list[Entry], list[Absent]]:
    absent = [Absent(entry.name, "missing", entry.install) for entry in wanted if entry.missing()]
    return [entry for entry in wanted if not entry.missing()], absent


def setup_for(
    entry: Entry,
    request: ModelRequest,
    target: TargetSpec,
    records: tuple[Path, ...],
    use_records: bool,
    scratch: Path,
) -> Setup:
    """Say what a runtime needs to know, with a directory of its own for what it writes."""
    directory = scratch / entry.name
    directory.mkdir()
    return Setup(
        request,
        directory,
        target.num_cores,
        target,
        records,
        use_records and entry.name != UNTUNED,
        bundle_format=FORMATS.get(entry.name, ""),
    )


def _load(
    entry: Entry,
    setup: Setup,
    cpus: Sequence[int],
    inputs: "Arrays",
    wanted: "list[Arrays]",
    observer: Observer,
) -> _Ready:
    """Convert, load and run once; one that fails at it takes no cores from those that are timed."""
    log = setup.directory.with_suffix(".log")
    observer(f"converting for {entry.name}")
    with Worker(log) as converter:
        records = converter.call("convert", entry, setup)
    observer(f"loading {entry.name}")
    with ExitStack() as own:
        worker = own.enter_context(Worker(log, cpus, setup.threads))
        version = str(worker.call("prepare", entry, setup))
        error = _check(worker, inputs, wanted)
        own.pop_all()
    return _Ready(worker, version, records or {}, error)


def _check(worker: Worker, inputs: "Arrays", wanted: "list[Arrays]") -> float:
    """Greatest relative error over the samples; the first sample stays in place for the timing."""
    samples = list(zip(inputs, wanted, strict=True))
    return max(
        relative_error(worker.call("infer", [array]), outputs)
        for array, outputs in reversed(samples)
    )


def relative_error(results: "Arrays", references: "Arrays") -> float:
    """Give max|y - ref| / max|ref|, the greatest over the outputs.

    A runtime may drop axes of extent 1; another number of elements is an infinite error, and so
    is a value that is not a number.
    """
    from tvmattend.runtime.network import relative_error as of_one

    if len(results) != len(references):
        return float("inf")
    return max(
        of_one(result.reshape(reference.shape), reference)
        if result.size == reference.size
        else float("inf")
        for result, reference in zip(results, references, strict=True)
    )


def wrong(runtime: str, version: str, error: float) -> Absent:
    """Say that a runtime computes something else.

    Raises:
        BenchmarkError: It is ours: there is nothing to compare with.
    """
    if runtime == OURS:
        raise BenchmarkError(
            f"tvmattend's own output is off by {error:.1e} of the greatest value",
            "build with --no-records, and report it",
        )
    reason = f"its output is off by {error:.1e} of the greatest value; at most {TOLERANCE:.0e} is"
    return Absent(runtime, "wrong", f"{reason} accepted", version, error)


def _time(
    ready: Mapping[str, _Ready],
    options: Options,
    cpus: Sequence[int],
    absent: list[Absent],
    observer: Observer,
) -> tuple[dict[str, Timing], float | None]:
    def burst(worker: Worker) -> Callable[[], list[float]]:
        def run() -> list[float]:
            try:
                return list(worker.call("burst", options.settle, options.burst, options.least))
            except TvmattendError:
                worker.close()  # it may go on computing on the others' cores
                raise

        return run

    def told(number: int, name: str) -> None:
        if name == next(iter(ready)):
            observer(f"timing, round {number + 1} of {options.rounds}")

    load = Load(cpus, [loaded.worker.pid for loaded in ready.values()])
    timings, failures = interleave(
        {name: burst(loaded.worker) for name, loaded in ready.items()},
        options.rounds,
        lambda: time.sleep(_PAUSE_SECONDS),
        told,
    )
    absent += [Absent.failed(name, error) for name, error in failures.items()]
    return timings, load.others()
