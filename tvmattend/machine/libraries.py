# SPDX-License-Identifier: Apache-2.0
"""The estimate of a standalone library: one inference by its C interface, without Python."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.cache import Progress
from tvmattend.machine.estimate import Estimate, estimate
from tvmattend.machine.guest_programs import guest_board, guest_program
from tvmattend.machine.guests import WINDOWS
from tvmattend.machine.parameters import Parameters
from tvmattend.machine.replay import Program
from tvmattend.machine.tracing import Settings, trace

_SOURCE = Path(__file__).with_name("bundle_guest.c")


def estimate_library(
    bundle: Path,
    manifest: Mapping[str, Any],
    threads: int,
    parameters: Parameters,
    caches: bool,
    group: Callable[[str, str | None], str | None],
    own: Mapping[str, str],
    progress: Progress,
) -> Estimate:
    """Run the bundle's library on its first golden inputs, and estimate that.

    Args:
        bundle: The directory, whose files were checked.
        manifest: Of the bundle.
        threads: That work at once.
        parameters: Of the model.
        caches: Whether to model them; then an inference before the estimated one warms them.
        group: As for `tvmattend.machine.estimate.estimate`.
        own: As for `tvmattend.machine.estimate.estimate`.
        progress: Told about each step.

    Raises:
        ProgramError: It failed under QEMU.
        ToolMissingError: QEMU or LLVM's tools are not installed.
    """
    library = bundle.absolute() / manifest["library"]
    settings = Settings(
        caches=caches, board=guest_board(parameters.clock_hz, progress), most=WINDOWS
    )
    with tempfile.NamedTemporaryFile(prefix="tvmattend-inputs-") as inputs:
        with np.load(bundle / "golden.npz", allow_pickle=False) as vectors:
            for place in range(len(manifest["inputs"])):
                inputs.write(vectors[f"input{place}"][0].tobytes())
        inputs.flush()
        prefix = library.stem.removeprefix("lib")
        arguments = [str(library), prefix, inputs.name, str(threads), str(int(caches))]
        # An empty environment: what lies on the stack decides where the stack is.
        command = [str(guest_program(_SOURCE, progress)), *arguments]
        run, _ = trace(command, settings, {}, progress)
    progress("pipeline model")
    return estimate(Program(run), parameters, threads, group, own)
