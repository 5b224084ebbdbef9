# SPDX-License-Identifier: Apache-2.0
"""The verb `profile`: where the time of an inference goes, kernel by kernel.

TVM's virtual machine calls an instrument before and after every call that it makes. A kernel's time
is therefore taken inside a real inference, with its inputs in the cache where the kernel before
left them and its weights wherever the last inference left them: that is the time that counts. It
includes about one microsecond of the instrument itself. The sum over the kernels is compared with
whole inferences that run without instrument, so what is not explained is seen: the best of one with
the best of the other, for on a busy machine hardly any whole inference goes uninterrupted, while
most calls of a kernel do, and their medians add up to less than the median of the whole.

A second figure comes from running the same call again on the spot: everything is then as near as
its cache allows. A kernel that is much faster there waits for memory in the real inference.

A standalone library has no instrument; it times its own steps, with the clock of the thread that
calls it, and those of a fused kernel are added up.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tvmattend.bench.host import Load, describe_machine
from tvmattend.bench.kernel_report import Kernel, Profile
from tvmattend.bench.roofline import measure
from tvmattend.errors import BenchmarkError, BundleError, InputError

if TYPE_CHECKING:
    from tvmattend.bundle.manifest import Manifest

_Result = TypeVar("_Result")

Observer = Callable[[str], None]

_BUILTIN = "vm.builtin."
_AGAIN = 5


@dataclass
class _Call:
    """One call of one inference, as the instrument saw it."""

    name: str
    seconds: float = 0.0
    again: float | None = None


class _Instrument:
    """What the virtual machine calls around each of its calls.

    Args:
        again: Whether to run each kernel some more times on the spot.
    """

    def __init__(self, again: bool) -> None:
        self._again = again
        self.calls: list[_Call] = []
        self.builtin = 0.0
        self._start = 0.0

    def __call__(self, function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        """Note the time; 0 tells the virtual machine to go on as usual."""
        now = time.perf_counter()
        builtin = name.startswith(_BUILTIN)
        if before:
            if not builtin:
                self.calls.append(_Call(name))
                if self._again:
                    self.calls[-1].again = min(_seconds(function, args) for _ in range(_AGAIN))
            self._start = time.perf_counter()
        elif builtin:
            self.builtin += now - self._start
        else:
            self.calls[-1].seconds = now - self._start
        return 0


def profile(
    bundle: Path,
    threads: int | None = None,
    runs: int = 50,
    observer: Observer = lambda _: None,
) -> Profile:
    """Time every kernel call of a bundle on this machine.

    Args:
        bundle: The bundle's directory.
        threads: Threads of the kernels; by default the bundle's own.
        runs: Inferences that are instrumented.
        observer: Told, in a line, what is being done.

    Raises:
        BundleError: The bundle is damaged, or does not say what its kernels are.
        BundleMismatchError: It was built for another machine.
        InputError: A number is out of range.
        BenchmarkError: Two inferences did not make the same calls.
    """
    if runs < 1:
        raise InputError(f"--runs {runs} is out of range", "give 1 or more")
    # Before the bundle's own runtime: one process cannot hold two copies of the library, and
    # measuring the machine needs the compiler.
    import tvm  # noqa: F401

    from tvmattend.bundle.manifest import Manifest
    from tvmattend.runtime import load

    network = load(bundle, threads)
    manifest = Manifest.from_json(network.manifest)
    inputs = network.golden()[0][0]
    load_of_others = Load(sorted(os.sched_getaffinity(0)), [os.getpid()])
    network.time(*inputs, repeat=runs, warmup=2)  # the clock and the caches
    observer("timing kernels in the inference")
    if manifest.format == "vm":
        inside, whole = _instrumented(network, inputs, runs, again=False)
        observer("timing kernels again on the spot")
        spot, _ = _instrumented(network, inputs, max(3, runs // 10), again=True)
    else:
        inside, whole = _by_its_own_clock(network, inputs, runs)
        spot = inside
    target = replace(manifest.target, num_cores=network.threads)
    observer("measuring what this machine can do")
    weights = (bundle / str(network.manifest["library"])).stat().st_size
    roofline = measure(target, weights, lambda work: _in_pool(network, work))
    return Profile(
        model=manifest.model,
        target=target,
        machine=describe_machine(),
        roofline=roofline,
        inference=statistics.median(whole),
        best_inference=min(whole),
        best_kernels=min(sum(call.seconds for call in run.calls) for run in inside),
        builtin=statistics.median(run.builtin for run in inside),
        runs=runs,
        kernels=tuple(_kernels(inside, spot, manifest)),
        others=load_of_others.others(),
    )


def _kernels(
    inside: Sequence[_Instrument],
    spot: Sequence[_Instrument],
    manifest: "Manifest",
) -> "list[Kernel]":
    known = {kernel.key: kernel for kernel in manifest.kernels}
    calls = [_by_launch(run, manifest) for run in inside]
    extra = [_by_launch(run, manifest) for run in spot]
    kernels = []
    for place in calls[0]:
        launch = manifest.launches[place]
        kernel = known[launch.key]
        again = [run[place].again for run in extra]
        kernels.append(
            Kernel(
                name=launch.name,
                seconds=statistics.median(run[place].seconds for run in calls),
                again=None if None in again else statistics.median(filter(None, again)),
                moved=kernel.moved,
                flops=kernel.flops,
                modules=launch.modules,
                family=kernel.family,
            )
        )
    return kernels


def _instrumented(
    network: Any, inputs: Sequence["np.ndarray[Any, Any]"], runs: int, *, again: bool
) -> tuple[list[_Instrument], list[float]]:
    """Run with and without an instrument in turns; it is removed in the end.

    Returns:
        What the instruments saw, and the seconds of the whole inferences without.
    """
    network(*inputs)  # puts the inputs in place
    # The network's executor owns the virtual machine and the thread with TVM's pool; there is no
    # public way to either, and only a profiler wants one.
    executor = network._executor  # noqa: SLF001
    set_instrument, main = executor._vm["set_instrument"], executor._main  # noqa: SLF001
    tensors = executor._tensors  # noqa: SLF001

    def work() -> tuple[list[_Instrument], list[float]]:
        seen, whole = [], []
        try:
            for _ in range(runs + 1):
                seen.append(_Instrument(again))
                set_instrument(seen[-1])
                main(*tensors)
                set_instrument(None)
                main(*tensors)  # the instrument's Python has been in the caches
                whole.append(_seconds(main, tensors))
        finally:
            set_instrument(None)
        return seen[1:], whole[1:]  # the first ones warm up

    seen, whole = _in_pool(network, work)
    names = {tuple(_names(run)) for run in seen}
    if len(names) != 1:
        raise BenchmarkError("two inferences called other kernels", "profile a fixed network")
    return seen, whole


def _by_its_own_clock(
    network: Any, inputs: Sequence["np.ndarray[Any, Any]"], runs: int
) -> tuple[list[_Instrument], list[float]]:
    """Have a standalone library time its steps, and whole inferences in turns with that.

    Returns:
        Its steps as calls, and the seconds of the whole inferences.
    """
    library = network._executor._library  # noqa: SLF001  (only a profiler wants it)
    seen, whole = [], []
    for _ in range(runs + 1):
        seen.append(_Instrument(again=False))
        seen[-1].calls = [_Call(name, seconds) for name, seconds in library.profile(inputs)]
        whole += network.time(*inputs, repeat=1, warmup=0)
    return seen[1:], whole[1:]


def _by_launch(run: _Instrument, manifest: "Manifest") -> dict[int, _Call]:
    """Give the call of each launch, by its place among the manifest's.

    A standalone library times the steps of a fused kernel: `dcac_0`, `dcac_1`, ... are one call of
    `dcac`. A launch that only gives a tensor another shape is a view in the library.

    Raises:
        BundleError: The library calls other kernels.
    """
    flops = {kernel.key: kernel.flops for kernel in manifest.kernels}
    found, steps = {}, list(run.calls)
    for place, launch in enumerate(manifest.launches):
        names = (launch.name, f"{launch.name}_0")
        if not steps or (steps[0].name not in names and flops[launch.key] == 0):
            continue
        call, part = steps.pop(0), 1
        seconds = call.seconds
        while call.name == names[1] and steps and steps[0].name == f"{launch.name}_{part}":
            seconds, part = seconds + steps.pop(0).seconds, part + 1
        if call.name not in names:
            steps.insert(0, call)
            break
        found[place] = _Call(launch.name, seconds, call.again)
    if steps:
        raise BundleError(
            f"the library calls `{steps[0].name}`, which manifest.json does not name there",
            "build the bundle again",
        )
    return found


def _names(run: _Instrument) -> list[str]:
    return [call.name for call in run.calls]


def _in_pool(network: Any, work: Callable[[], _Result]) -> _Result:
    """Run a function in the thread that the network's kernels run in."""
    result: _Result = network._executor._call(work)  # noqa: SLF001
    return result


def _seconds(function: Any, args: Sequence[Any]) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
