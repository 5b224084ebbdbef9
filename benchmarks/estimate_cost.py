# SPDX-License-Identifier: Apache-2.0
"""What an estimate of a network costs, with and without caches, and how fast tuning on it is.

    python benchmarks/estimate_cost.py [--trials N] [--bundle DIR]

Seconds by the clock, and of all cores together (user and system, of every process that took part):
on a machine that others use as well only the second says something. Candidates are timed in
`tune --estimate`'s own loop, from the first batch's end to the last trial: before it lie imports.
"""

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import psutil

from tvmattend.codegen import build
from tvmattend.errors import TvmattendError
from tvmattend.frontend import ModelRequest
from tvmattend.machine.kernels import KernelModel
from tvmattend.target import parse_target
from tvmattend.tuning import TuneOptions, tune
from tvmattend.tuning.events import TrialDone

_FIRST = 8  # trials of the first batch, which are not timed


def cpu_seconds() -> float:
    """Of this process and all that it started, those that have ended included."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended: its parent counts it
            total += sum(process.cpu_times()[:4])
    return total


def one_estimate(bundle: Path, *options: str) -> tuple[float, float]:
    """Seconds by the clock and of all cores, of `tvmattend estimate` from its start to its end."""
    began, before = time.monotonic(), cpu_seconds()
    command = [sys.executable, "-m", "tvmattend", "estimate", str(bundle), "--json", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began, cpu_seconds() - before


def candidates(model: str, trials: int, place: Path) -> tuple[int, float, float]:
    """Candidates that were timed, seconds by the clock, and of all cores."""
    marks: list[tuple[int, float, float]] = []

    def watch(event: Any) -> None:
        if isinstance(event, TrialDone) and (not marks or event.done in {_FIRST, trials}):
            marks.append((event.done, time.monotonic(), cpu_seconds()))

    options = TuneOptions(trials=trials)
    target = parse_target("cortex-a72", 1)
    tune(model, target, options=options, output=place, model=KernelModel(),
         log=place / "tune.log", observer=watch)  # fmt: skip
    first, last = marks[-2], marks[-1]
    return last[0] - first[0], last[1] - first[1], last[2] - first[2]


@click.command()
@click.option("--model", default="attendnext")
@click.option("--trials", default=64, type=click.IntRange(2 * _FIRST))
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Not built anew.")
def main(model: str, trials: int, bundle: Path | None) -> None:
    """Print the figures."""
    print(f"$ python benchmarks/estimate_cost.py --trials {trials}")
    print(f"{psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f} at the start\n")
    try:
        with tempfile.TemporaryDirectory() as place:
            if bundle is None:
                bundle = Path(place) / "bundle"
                build(ModelRequest(model), parse_target("cortex-a72"), output=bundle)
            print(f"one estimate of {model:<16}{'seconds':>9}{'of cores':>10}")
            for name, options in (("with caches", ()), ("without", ("--no-caches",))):
                wall, busy = one_estimate(bundle, *options)
                print(f"{name:<32}{wall:>7.1f}{busy:>10.1f}", flush=True)
            count, wall, busy = candidates(model, trials, Path(place))
    except TvmattendError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    print(f"\n{count} candidates in {wall:.0f} s: {count / wall:.2f} a second, "
          f"{busy / count:.2f} s of a core each")  # fmt: skip
    print(f"(alone on two cores: {2 * count / busy:.2f} a second)")


if __name__ == "__main__":
    main()
