# SPDX-License-Identifier: Apache-2.0
"""Candidates -> estimates: a model of the core stands where a board would.

Each candidate runs once under QEMU. That run gives the counts for the estimate and the tensors
for a check: an estimate of a kernel that computes something else would be worth nothing. Other
work on this machine does not disturb an estimate: what is built runs at once, and the next batch
is under way before this one is over.
"""

import hashlib
import math
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tvmattend.codegen.link import BareLinker, Linker
from tvmattend.errors import StorageError, TuningError
from tvmattend.target import TargetSpec
from tvmattend.tuning.bench import Artifact, Candidate, Outcome
from tvmattend.tuning.crew import Finished
from tvmattend.tuning.own_faults import own_fault, settled
from tvmattend.tuning.pools import DiedError, Pool
from tvmattend.tuning.record import Origin
from tvmattend.tuning.search import scheduled
from tvmattend.tuning.workshop import Workshop

if TYPE_CHECKING:
    import numpy as np

# Of a tensor's largest value. A sum of noise may cancel to almost nothing, so no element's own
# size can be the measure; another order of summation changes far less than this.
TOLERANCE = 1e-5

# On top of a trial's own time: asking LLVM, replaying, on a busy machine.
_MODEL_SECONDS = 120.0

# So many trials, a batch, are still under way when the next batch is chosen, which learns less.
_AHEAD = 8
# Each trial under way has one, and so has each default that is run to compare with.
_THREADS = 4 * _AHEAD

# Seconds of the estimate, or None and why there is none.
Result: TypeAlias = tuple[float | None, str]


class Trial(Protocol):
    """Runs one kernel, in a worker process: it must survive pickling."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Files of the board's C library, to link kernels with; empty if they are not here."""

    def __call__(
        self, library: Path, arguments: Sequence[tuple[tuple[int, ...], str]], outputs: Path
    ) -> Result:
        """Run `main` of a library on seeded tensors of these shapes and dtypes.
        All tensors are written to `outputs` afterwards, one after the other.
        """


class Model(Protocol):
    """A core without a board: `tvmattend.machine.kernels.KernelModel`, given by the caller."""

    def check(self, target: TargetSpec) -> None:
        """Refuse early what it has no estimates for, and if a tool is missing."""

    def describe(self, threads: int) -> Mapping[str, Any]:
        """Describe it for the records; `digest` and `llvm` tell its versions apart."""

    def open(self, timeout: float, threads: int) -> Trial:
        """Prepare what runs kernels, each for `timeout` seconds at most (`TimeoutError`)."""


class Estimators(Workshop):
    """A crew that builds for the target and estimates instead of measuring.

    The default point of a task is the reference that its other points are compared with, on the
    same seeded inputs.

    Args:
        model: Gives the seconds.
        target: What to build for, with the model's core.
        timeout: Seconds for building a kernel, and again for running it.
        machine: What the model says of itself.
        cross_compiler: Linker to use instead of Zig.

    Raises:
        ToolMissingError: The linker, or something that the model needs, is missing.
    """

    origin: Origin = "estimated"
    ahead = _AHEAD

    def __init__(
        self,
        model: Model,
        target: TargetSpec,
        timeout: float,
        machine: Mapping[str, Any],
        cross_compiler: str | None = None,
    ) -> None:
        self.machine = machine
        self._trial = model.open(timeout, target.num_cores)
        self._under_way: deque[tuple[Candidate, Future[Outcome]]] = deque()
        self._defaults: dict[str, Future[Outcome]] = {}
        self._references: dict[str, Path] = {}  # the tensors after the default point of each task
        self._libraries: dict[tuple[str, bytes], Future[Outcome]] = {}
        self._fault: StorageError | TuningError | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "tvmattend-estimate")
        self._last = time.monotonic()
        super().__init__(target, timeout, cross_compiler)

    def _linker(self, target: TargetSpec, cross_compiler: str | None) -> Linker:
        """Where the model has a board's libraries, they are enough."""
        if cross_compiler is not None or not self._trial.libraries:
            return Linker(target, cross_compiler)
        return BareLinker(target, libraries=self._trial.libraries)

    def _open(self) -> None:
        # The trial itself keeps the limit; this one is for what hangs beside it.
        self._pool = Pool(self._timeout + _MODEL_SECONDS)
        self._benches.append(self._pool)

    def submit(self, batch: Sequence[Candidate]) -> None:
        """Begin to build and run candidates. A task without a reference gets one first."""
        if self._fault is not None:
            return
        if not self._under_way:
            self._last = time.monotonic()
        for candidate in self._missing_defaults(batch):
            self._start(candidate)
        self._under_way += [(candidate, self._start(candidate)) for candidate in batch]

    def next(self) -> Finished:
        """Wait for the trial that was submitted first.

        Raises:
            StorageError: This machine cannot write: raised when nothing is under way any more.
            TuningError: The workers are killed; likewise.
        """
        while self._under_way:
            candidate, future = self._under_way.popleft()
            while not future.done():  # polled: a wait inside a lock would be deaf to Ctrl-C
                time.sleep(0.005)
            try:
                outcome = future.result()
            except (StorageError, TuningError) as fault:
                self._fault = self._fault or fault
                continue
            now = time.monotonic()
            spent, self._last = now - self._last, now
            return Finished(candidate, outcome, spent)
        assert self._fault is not None  # noqa: S101  (else something was submitted)
        raise self._fault

    def close(self) -> None:
        """Begin nothing new, then kill what works."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _missing_defaults(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Default points that a run which goes on with earlier records did not try itself.

        And those that were late: without one nothing of its task can be compared.
        """
        known = {item.task.key for item in candidates if _is_default(item)}
        known |= {key for key, trial in self._defaults.items() if not _was_late(trial)}
        tasks = {item.task.key: item.task for item in candidates if item.task.key not in known}
        return [scheduled(task, task.space.default) for task in tasks.values()]

    def _start(self, candidate: Candidate) -> Future[Outcome]:
        future = self._threads.submit(self._do, candidate, self.begin(candidate))
        if _is_default(candidate):
            self._defaults[candidate.task.key] = future
        return future

    def _do(self, candidate: Candidate, begun: Future[str] | None) -> Outcome:
        """A trial, in a thread that does nothing but wait for processes."""
        product = self.product(candidate, begun)
        if isinstance(product, Outcome):
            return product
        # Some knobs change nothing of a kernel: the same machine code, the same estimate.
        code = hashlib.sha256(Path(product.path).read_bytes()).digest()
        mine: Future[Outcome] = Future()
        first = self._libraries.setdefault((candidate.task.key, code), mine)
        if first is not mine and not _is_default(candidate):
            outcome = first.result()
            if outcome.status == "ok":  # a fault may have been the machine's, so that one runs
                Path(product.path).unlink(missing_ok=True)
                return outcome
        try:
            outcome = self._tried(candidate, product)
        except BaseException as fault:
            mine.set_exception(fault)
            raise
        mine.set_result(outcome)
        return outcome

    def _tried(self, candidate: Candidate, product: Artifact) -> Outcome:
        """Run a kernel, and compare what it computes."""
        tensors = Path(product.path).with_suffix(".tensors")
        outcome = self._run(product, tensors)
        Path(product.path).unlink(missing_ok=True)
        if outcome.status == "ok" and _is_default(candidate):
            self._references[candidate.task.key] = tensors
            return outcome
        if outcome.status == "ok":
            outcome = self._compared(candidate, product, tensors, outcome)
        tensors.unlink(missing_ok=True)
        return outcome

    def _run(self, artifact: Artifact, tensors: Path) -> Outcome:
        arguments = [
            (tuple(int(size) for size in info.shape), str(info.dtype))
            for info in artifact.args_info
        ]

        def begin() -> Future[Result | None]:
            return self._pool.submit(_run_here, self._trial, artifact.path, arguments, str(tensors))

        try:
            result = settled(begin, begin(), self._place)
        except TimeoutError:
            result = None
        except DiedError as died:
            return Outcome("run-error", error=f"CrashError: what ran QEMU: {died}")
        if result is None:
            return Outcome("timeout", error=f"running took more than {self._timeout:g} s")
        seconds, error = result
        if seconds is not None:
            return Outcome("ok", (seconds,))
        fault = own_fault(error, self._place)
        if fault is not None:
            raise fault
        return Outcome("run-error", error=error)

    def _compared(
        self, candidate: Candidate, artifact: Artifact, tensors: Path, outcome: Outcome
    ) -> Outcome:
        """The outcome, or an error if another thing was computed than by the default point."""
        # It was submitted earlier, and threads take what was submitted in turn: it is under way.
        default = self._defaults[candidate.task.key].result()
        if default.status != "ok":
            error = f"nothing to compare with: the default: {default.error}"
            return Outcome("run-error", error=error)
        wrong = difference(self._references[candidate.task.key], tensors, artifact.args_info)
        return Outcome("run-error", error=wrong) if wrong else outcome


def _run_here(
    trial: Trial, library: str, arguments: Sequence[tuple[tuple[int, ...], str]], outputs: str
) -> Result | None:
    """Runs in a worker process, so that a kernel that hangs can be given up on; None if it does."""
    tempfile.tempdir = str(Path(library).parent)  # a killed worker removes nothing itself
    try:
        return trial(Path(library), arguments, Path(outputs))
    except TimeoutError:
        return None


def difference(reference: Path, tensors: Path, args_info: Sequence[Any]) -> str:
    """Compare all tensors of two runs.

    Args:
        reference: Tensors of the default point, one after the other.
        tensors: Those of a candidate.
        args_info: Shape and dtype of each (`TensorInfo`).

    Returns:
        What differs; empty if nothing does.

    Raises:
        StorageError: One of the files is missing, or not whole.
    """
    import numpy as np

    dtypes = [
        np.dtype({"bfloat16": "uint16"}.get(name, name))
        for name in (str(info.dtype) for info in args_info)
    ]
    counts = [math.prod(int(size) for size in info.shape) for info in args_info]
    length = sum(count * dtype.itemsize for count, dtype in zip(counts, dtypes, strict=True))
    expected, actual = (_tensors(file, length) for file in (reference, tensors))
    at = 0
    for place, (dtype, count) in enumerate(zip(dtypes, counts, strict=True)):
        first, second = (np.frombuffer(data, dtype, count, at) for data in (expected, actual))
        at += count * dtype.itemsize
        if np.array_equal(first, second):  # the inputs, as a rule: most of the bytes
            continue
        error = _relative_error(first, second)
        if error > TOLERANCE:
            return (
                f"WrongResultError: argument {place} differs from the default point's by "
                f"{error:.1e} of its largest value (allowed: {TOLERANCE:g})"
            )
    return ""


def _tensors(file: Path, length: int) -> bytes:
    """What a guest left, which must be so long."""
    data = file.read_bytes() if file.is_file() else b""
    if len(data) != length:
        # The run's own directory goes with the run; the user knows the one that it is in.
        raise StorageError(
            f"QEMU wrote {len(data)} of {length} bytes of a kernel's tensors to "
            f"`{file.parent.parent}`",
            "free some space there, or set TMPDIR, and repeat the command to go on",
        )
    return data


def _relative_error(expected: "np.ndarray", actual: "np.ndarray") -> float:
    """Largest difference, in units of the largest expected value; infinity for a new NaN."""
    import numpy as np

    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    first, second = expected.astype("float64"), actual.astype("float64")
    finite = np.isfinite(first)
    # Noise under a square root is NaN: that must be NaN in both, and an infinity the same one.
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(second[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    error = float(np.abs(first[finite] - second[finite]).max())
    largest = float(np.abs(first[finite]).max())
    return error / largest if largest else (float("inf") if error else 0.0)


def _is_default(candidate: Candidate) -> bool:
    return dict(candidate.point) == dict(candidate.task.space.default)


def _was_late(trial: Future[Outcome]) -> bool:
    return trial.done() and not trial.exception() and trial.result().status == "timeout"
