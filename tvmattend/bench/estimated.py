# SPDX-License-Identifier: Apache-2.0
"""The verb `bench --estimate`: runtimes beside ours on a Cortex-A72, without one.

Each runtime's aarch64 library runs one inference of the same network under QEMU, on the same
input; its output is compared with PyTorch's, and what it executed goes through the same model of
the core. Nothing is timed, so a busy machine changes nothing.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.bench import catalogue
from tvmattend.bench.board_peers import BOARD_PEERS
from tvmattend.bench.catalogue import CATALOGUE, OURS, Entry
from tvmattend.bench.client import Worker
from tvmattend.bench.comparison import TOLERANCE, relative_error, setup_for, wrong
from tvmattend.bench.estimate_report import Estimated, EstimatedComparison
from tvmattend.bench.report import Absent
from tvmattend.bench.runtime import Setup
from tvmattend.errors import BundleMismatchError, InputError, TvmattendError
from tvmattend.frontend.request import ModelRequest
from tvmattend.machine.parameters import CORE, OTHER_CORE
from tvmattend.target import TargetSpec

if TYPE_CHECKING:
    import numpy as np

Observer = Callable[[str], None]

AGAINST = ("ncnn", "litert", "onnxruntime")
_GUEST = Path(__file__).with_name("peer_guest.py")


@dataclass(frozen=True)
class EstimateOptions:
    """How peers are estimated.

    Attributes:
        threads: 1 or 4.
        against: Names of runtimes beside ours.
        records: Record files for ours.
        use_records: False builds ours without records.
    """

    threads: int = 1
    against: tuple[str, ...] = AGAINST
    records: tuple[Path, ...] = ()
    use_records: bool = True


def compare_estimates(
    request: ModelRequest,
    target: TargetSpec,
    options: EstimateOptions,
    observer: Observer = lambda _: None,
) -> EstimatedComparison:
    """Convert, run under QEMU, check and estimate.

    Args:
        request: The network; every runtime gets these weights.
        target: A Cortex-A72.
        options: Runtimes and threads.
        observer: Told, in a line, what is being done.

    Raises:
        BenchmarkError: A runtime is unknown, or ours computes something else.
        BundleMismatchError: The target is another core.
        InputError: Another number of threads than 1 or 4.
        ModelError: The network cannot be loaded.
        ToolMissingError: QEMU or LLVM's tools are not installed.
        WeightsError: The weights do not fit.
    """
    import numpy as np

    from tvmattend.device.emulated import find_qemu
    from tvmattend.machine.instructions import require_llvm

    wanted = [catalogue.find(name) for name in dict.fromkeys((OURS, *options.against))]
    if target.cpu != CORE:
        raise BundleMismatchError(
            f"the target's core is {target.cpu}; {OTHER_CORE}", f"give --target {CORE}"
        )
    if options.threads not in {1, 4}:
        raise InputError(
            f"--threads {options.threads}: the model was validated with 1 and 4", "give 1 or 4"
        )
    request.check()
    find_qemu()
    require_llvm()
    target = replace(target, num_cores=options.threads)
    found: list[Estimated] = []
    absent: list[Absent] = []
    with tempfile.TemporaryDirectory(prefix="tvmattend-bench-") as name:
        scratch = Path(name)
        observer("running PyTorch for the reference")
        with Worker(scratch / "reference.log") as worker:
            (array,), (outputs,) = worker.call("reference", request, 1)
        for entry in wanted:
            reason = _unable(entry)
            if reason is not None:
                absent.append(reason)
                continue
            setup = setup_for(entry, request, target, options.records, options.use_records, scratch)
            np.save(setup.directory / "input.npy", array)
            try:
                result = _estimate(entry, setup, outputs, observer)
            except TvmattendError as failure:
                if entry.name == OURS:
                    raise
                absent.append(Absent.failed(entry.name, failure))
                continue
            if result.max_rel_error > TOLERANCE:
                absent.append(wrong(result.runtime, result.version, result.max_rel_error))
            else:
                found.append(result)
    return EstimatedComparison(
        request.name,
        options.threads,
        tuple(found),
        tuple(absent),
        f"torch {metadata.version('torch')}",
    )


def _unable(entry: Entry) -> Absent | None:
    """Why a runtime cannot be tried at all."""
    if entry.name not in BOARD_PEERS:
        known = ", ".join(name for name in BOARD_PEERS if CATALOGUE[name].peer)
        return Absent(entry.name, "no adapter", f"on a board the bench drives {known}")
    lacking = BOARD_PEERS[entry.name].missing()
    if lacking:
        install = f"its converter needs {', '.join(lacking)} here: {entry.install}"
        return Absent(entry.name, "missing", install)
    return None


def _estimate(
    entry: Entry, setup: Setup, wanted: "Sequence[np.ndarray[Any, Any]]", observer: Observer
) -> Estimated:
    import numpy as np

    from tvmattend.device.emulated import prepare
    from tvmattend.machine.guests import Script, estimate_script

    peer = BOARD_PEERS[entry.name]
    observer(f"converting for {entry.name}")
    with Worker(setup.directory.with_suffix(".log")) as converter:
        converter.call("convert", replace(entry, module=peer.adapter or entry.module), setup)
    board = prepare(observer)
    script = Script(
        _GUEST,
        [peer.guest, str(setup.directory), str(setup.threads)],
        peer.unpacked(board.python_version, observer),
        # What a runtime writes for itself (ONNX Runtime does) shall be gone afterwards.
        environment={"HOME": str(setup.directory), "TMPDIR": str(setup.directory)},
    )
    observer(f"one inference of {entry.name} under QEMU")
    estimate = estimate_script(script, setup.threads, progress=observer)
    output = np.load(setup.directory / "output.npy")
    return Estimated(
        entry.name,
        peer.version or _own_version(),
        estimate,
        relative_error([output], list(wanted[:1])),
        entry.peer,
    )


def _own_version() -> str:
    from tvmattend import __version__

    return __version__
