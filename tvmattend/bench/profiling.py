# SPDX-License-Identifier: Apache-2.0
"""The verb `profile`: where the time of an inference goes, kernel by kernel.

A kernel's time is taken inside a real inference, with its inputs in the cache where the kernel
before left them and its weights wherever the last inference left them: that is the time that
counts. The sum over the kernels is compared with whole inferences in which nothing is timed, so
what is not explained is seen: the best of one with the best of the other, for on a busy machine
hardly any whole inference goes uninterrupted, while most calls of a kernel do, and their medians
add up to less than the median of the whole.

A second figure comes from running the same call again on the spot, where that is possible:
everything is then as near as its cache allows. A kernel that is much faster there waits for memory
in the real inference.

The steps of a fused kernel, which a standalone library times one by one, are added up.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.bench.kernel_report import Kernel, Profile
from tvmattend.bench.profiled import Call, Inference, Observer, Profiled
from tvmattend.bench.roofline import measure
from tvmattend.device.killable import ANSWER_SECONDS
from tvmattend.errors import BundleError, InputError
from tvmattend.interrupts import kept

if TYPE_CHECKING:
    from tvmattend.bundle.manifest import Manifest
    from tvmattend.device.endpoint import Endpoint

# Seconds; a library's door tells whole nanoseconds, and a clock may be coarser than a kernel.
_LEAST = 1e-9


def profile(
    bundle: Path,
    threads: int | None = None,
    runs: int = 50,
    observer: Observer = lambda _: None,
    board: "Endpoint | str | None" = None,
    require_signature: Path | None = None,
    timeout: float = ANSWER_SECONDS,
) -> Profile:
    """Time every kernel call of a bundle, on this machine or on a board.

    Args:
        bundle: The bundle's directory.
        threads: Threads of the kernels; by default the bundle's own.
        runs: Inferences whose calls are timed.
        observer: Told, in a line, what is being done.
        board: See `load_remote`; None for this machine.
        require_signature: A public key that must have signed the bundle.
        timeout: Seconds that a board may take for each answer; see `load_remote`.

    Raises:
        BundleError: The bundle is damaged, or does not say what its kernels are.
        BundleMismatchError: It was built for another machine, or is of the format `vm` where the
            kernels are to be timed on a board.
        InputError: A number is out of range.
        BenchmarkError: Two inferences did not make the same calls.
        TvmattendError: What `load` or `load_remote` raises.
    """
    if runs < 1:
        raise InputError(f"--runs {runs} is out of range", "give 1 or more")
    # Before the bundle's own runtime: one process cannot hold two copies of the library, and
    # measuring the machine needs the compiler.
    import tvm  # noqa: F401

    from tvmattend.runtime import load

    if board is None:
        from tvmattend.bench.profiled_here import ProfiledHere

        network = load(bundle, threads, require_signature)
        return _profile(bundle, network.manifest, ProfiledHere(network), runs, observer)

    from tvmattend.bench.profiled_board import ProfiledBoard
    from tvmattend.runtime.remote import load_remote

    with load_remote(bundle, board, threads, require_signature, timeout) as remote:
        return _profile(bundle, remote.manifest, ProfiledBoard(remote), runs, observer)


@kept()
def _profile(
    bundle: Path, description: dict[str, Any], place: Profiled, runs: int, observer: Observer
) -> Profile:
    from tvmattend.bundle.manifest import Manifest

    manifest = Manifest.from_json(description)
    seen = place.look(runs, observer)
    target = replace(manifest.target, num_cores=place.threads)
    observer("measuring what the machine can do")
    weights = (bundle / manifest.library).stat().st_size
    roofline = measure(
        target, weights, lambda module, arrays: place.least_seconds(module, arrays, target)
    )
    return Profile(
        model=manifest.model,
        target=target,
        machine=place.machine,
        machine_text=place.machine_text,
        machine_notes=place.notes,
        roofline=roofline,
        inference=statistics.median(seen.whole),
        best_inference=min(seen.whole),
        best_kernels=min(sum(call.seconds for call in run.calls) for run in seen.inside),
        builtin=statistics.median(run.builtin for run in seen.inside),
        runs=runs,
        kernels=tuple(_kernels(seen.inside, seen.spot, manifest)),
        others=place.others(),
    )


def _kernels(
    inside: Sequence[Inference],
    spot: Sequence[Inference],
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
                seconds=max(_LEAST, statistics.median(run[place].seconds for run in calls)),
                again=None if None in again else statistics.median(filter(None, again)),
                moved=kernel.moved,
                flops=kernel.flops,
                modules=launch.modules,
                family=kernel.family,
            )
        )
    return kernels


def _by_launch(run: Inference, manifest: "Manifest") -> dict[int, Call]:
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
        found[place] = Call(launch.name, seconds, call.again)
    if steps:
        raise BundleError(
            f"the library calls `{steps[0].name}`, which manifest.json does not name there",
            "build the bundle again",
        )
    return found
