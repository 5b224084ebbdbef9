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

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tvmattend.bench.host import describe_machine
from tvmattend.bench.kernel_report import Kernel, Profile
from tvmattend.bench.roofline import measure
from tvmattend.errors import BenchmarkError, InputError
from tvmattend.models import REGISTRY

_Result = TypeVar("_Result")

Observer = Callable[[str], None]
Fact = Mapping[str, Any]

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
        BundleError: The bundle is damaged.
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
    network.time(*inputs, repeat=runs, warmup=2)
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
    observer("finding the kernels' modules")
    facts = kernel_facts_of(network.manifest)
    if manifest.format != "vm" and facts is not None:
        inside = spot = [_joined(run, [str(fact["name"]) for fact in facts]) for run in inside]
    if facts is not None and _names(inside[0]) != [fact["name"] for fact in facts]:
        facts = None  # those of another version of tvmattend, say
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
        kernels=tuple(_kernels(inside, spot, facts)),
    )


def kernel_facts_of(manifest: Mapping[str, Any]) -> Sequence[Fact] | None:
    """Find what each kernel call computes: `name`, `flops`, `moved`, `modules` and `family`.

    A network that ships is lowered again as the build did; its weights play no part in that.

    Args:
        manifest: Of the bundle, as plain data.

    Returns:
        A fact for each call, in order; None for a network that does not ship.
    """
    return _lowered_again(manifest) if manifest["model"] in REGISTRY else None


def _lowered_again(manifest: Mapping[str, Any]) -> list[Fact]:
    from tvmattend.codegen.kernel_facts import kernel_facts
    from tvmattend.frontend import ModelRequest, import_model
    from tvmattend.target import parse_target

    batch, _, size, _ = manifest["inputs"][0]["shape"]
    request = ModelRequest(
        manifest["model"], num_classes=manifest["classes"], input_size=size, batch=batch
    )
    imported = import_model(request)
    target = parse_target(manifest["target"])
    facts = kernel_facts(imported.ir_module, imported.module_paths, target)
    return [fact.to_json() for fact in facts]


def _kernels(
    inside: Sequence[_Instrument],
    spot: Sequence[_Instrument],
    facts: Sequence[Fact] | None,
) -> "list[Kernel]":
    kernels = []
    for place, call in enumerate(inside[0].calls):
        fact = facts[place] if facts is not None else {}
        again = [run.calls[place].again for run in spot]
        kernels.append(
            Kernel(
                name=call.name,
                seconds=statistics.median(run.calls[place].seconds for run in inside),
                again=None if None in again else statistics.median(filter(None, again)),
                moved=int(fact["moved"]) if fact else None,
                flops=float(fact["flops"]) if fact else None,
                modules=tuple(fact["modules"]) if fact else None,
                family=str(fact["family"]) if fact else None,
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


def _joined(run: _Instrument, names: Sequence[str]) -> _Instrument:
    """Add the steps of a fused kernel up: `dcac_0`, `dcac_1`, ... are one call of `dcac`.

    Gives the run as it is if its steps are not those of the kernels named.
    """
    joined = _Instrument(again=False)
    steps = list(run.calls)
    for name in names:
        if not steps:
            return run
        first = steps.pop(0)
        if first.name not in {name, f"{name}_0"}:
            return run
        seconds, part = first.seconds, 1
        while first.name != name and steps and steps[0].name == f"{name}_{part}":
            seconds, part = seconds + steps.pop(0).seconds, part + 1
        joined.calls.append(_Call(name, seconds))
    return run if steps else joined


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
