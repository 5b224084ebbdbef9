# SPDX-License-Identifier: Apache-2.0
"""The estimate of what a Python script does on the emulated board, between its marks."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvmattend.cache import Progress
from tvmattend.device.emulated import prepare
from tvmattend.machine.estimate import Estimate, estimate
from tvmattend.machine.parameters import SHIPPED, Parameters
from tvmattend.machine.replay import Program
from tvmattend.machine.tracing import Settings, trace

# Windows that are replayed, of 512 blocks each: ten million instructions of AttendNeXt.
WINDOWS = 1024

# Threads that wait must not spin: their instructions would look like work.
_QUIET = {"TVM_THREAD_POOL_SPIN_COUNT": "0", "OMP_WAIT_POLICY": "passive"}


@dataclass(frozen=True)
class Script:
    """A Python script for the board.

    Attributes:
        file: The script; it marks its phases (`tvmattend.machine.tracing`).
        arguments: Its arguments.
        packages: Directories to import from beside numpy and apache-tvm-ffi.
        environment: On top of the board's.
    """

    file: Path
    arguments: Sequence[str]
    packages: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def estimate_script(
    script: Script,
    threads: int = 1,
    parameters: Parameters = SHIPPED,
    caches: bool = True,
    group: Callable[[str, str | None], str | None] | None = None,
    own: Mapping[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> Estimate:
    """Run a script under QEMU and estimate what it counts.

    Args:
        script: What to run.
        threads: That work at once; also what pools are sized with.
        parameters: Of the model.
        caches: Whether to model them.
        group: As for `tvmattend.machine.estimate.estimate`.
        own: As for `tvmattend.machine.estimate.estimate`.
        progress: Told about each step.

    Raises:
        ProgramError: It failed under QEMU.
        ToolMissingError: QEMU or LLVM's tools are not installed.
    """
    board = prepare(progress)
    python = board.minimal_python()
    sizes = dict.fromkeys(("TVM_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
    environment = python.environment({**_QUIET, **sizes, **script.environment})
    paths = [environment["PYTHONPATH"], *map(str, script.packages)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = python.guest_command([str(script.file), *script.arguments])
    settings = Settings(
        caches=caches, sysroot=python.root, clock_hz=parameters.clock_hz, most=WINDOWS
    )
    run, _ = trace(command, settings, environment, progress)
    progress("pipeline model")
    return estimate(Program(run), parameters, threads, group, own)
