# SPDX-License-Identifier: Apache-2.0
"""The estimate of any aarch64 Linux program, by function."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tvmattend.cache import Progress
from tvmattend.errors import InputError
from tvmattend.machine.estimate import Estimate, Part, estimate
from tvmattend.machine.parameters import Parameters
from tvmattend.machine.replay import Program
from tvmattend.machine.tracing import Settings, find_program, trace


def estimate_program(
    command: Sequence[str],
    threads: int,
    parameters: Parameters,
    caches: bool = True,
    baseline: str | None = None,
    sysroot: Path | None = None,
    progress: Progress = lambda _: None,
) -> Estimate:
    """Estimate a program between its markers, or as a whole, less what a baseline takes.

    Args:
        command: An aarch64 executable and its arguments.
        threads: That work at once.
        parameters: Of the model.
        caches: Whether to model them.
        baseline: A command line that does all but what is to be timed.
        sysroot: Where the program's libraries are.
        progress: Told about each step.

    Raises:
        InputError: A program is not there or not for aarch64; nothing is left to estimate.
        ProgramError: It failed under QEMU.
        ToolMissingError: QEMU or LLVM's tools are not installed.
    """
    less = None if baseline is None else _words(baseline)
    found = _one(command, threads, parameters, caches, sysroot, progress)
    if less is None:
        return found
    other = _one(less, threads, parameters, caches, sysroot, progress)
    if other.whole.cycles >= found.whole.cycles:
        raise InputError(
            "the baseline takes as long as the command", "it must do the same, less what is timed"
        )
    return _minus(found, other)


def _words(baseline: str) -> list[str]:
    """Split a command line, and see now that its program is there: the other takes a while."""
    try:
        words = shlex.split(baseline)
    except ValueError as error:
        raise InputError(
            f"the baseline {baseline!r} is no command line: {error}", "quote it as in a shell"
        ) from error
    if not words:
        raise InputError("the baseline is empty", "give a command, or leave --baseline out")
    find_program(words[0])
    return words


def _one(
    command: Sequence[str], threads: int, parameters: Parameters, caches: bool,
    sysroot: Path | None, progress: Progress,
) -> Estimate:  # fmt: skip
    progress(f"{command[0]} under QEMU")
    settings = Settings(caches=caches, sysroot=sysroot, clock_hz=parameters.clock_hz)
    run, _ = trace(command, settings, None, progress)
    if not run.markers:
        # Nothing was counted: the program marks no phases. Again, from its first instruction.
        progress("it marks no phases: counting all of it")
        run, _ = trace(command, replace(settings, markers=False), None, progress)
    if not run.blocks:
        raise InputError(
            "nothing was counted between the program's markers",
            "close(0x0A720002) starts counting, close(0x0A720003) ends it",
        )
    progress("pipeline model")
    return estimate(Program(run), parameters, threads)


def _minus(found: Estimate, other: Estimate) -> Estimate:
    less = {part.name: part for part in other.parts}
    empty = Part("")
    parts = (_difference(part, less.get(part.name, empty)) for part in found.parts)
    kept = sorted((p for p in parts if p.instructions > 0), key=lambda part: -part.cycles)
    return replace(
        found,
        whole=_difference(found.whole, other.whole),
        parts=tuple(kept),
        regions=max(0, found.regions - other.regions),
    )


def _difference(more: Part, less: Part) -> Part:
    """What one run counts above another; noise of a run never counts below nothing."""
    events, resources = Counter(more.events), Counter(more.resources)
    events.subtract(less.events)
    resources.subtract(less.resources)
    return replace(
        more,
        cycles=max(0.0, more.cycles - less.cycles),
        instructions=max(0, more.instructions - less.instructions),
        fma=max(0.0, more.fma - less.fma),
        calls=max(0, more.calls - less.calls),
        events={name: max(0, count) for name, count in events.items()},
        resources={name: max(0.0, need) for name, need in resources.items()},
    )
