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
from typing import Any, NamedTuple

import click
import psutil

from tvmattend.cli.main import errors_told
from tvmattend.codegen import build
from tvmattend.errors import BenchmarkError
from tvmattend.frontend import ModelRequest
from tvmattend.machine.kernels import KernelModel
from tvmattend.target import parse_target
from tvmattend.tuning import TuneOptions, tune
from tvmattend.tuning.events import TrialDone

_FIRST = 8  # trials of the first batch, which are not timed


class Busy(NamedTuple):
    """Seconds of a core, since the start: here, in worker processes, and in what those started."""

    here: float
    workers: float
    tools: float

    def since(self, before: "Busy") -> "Busy":
        """What came since then."""
        return Busy(*(now - then for now, then in zip(self, before, strict=True)))


def busy() -> Busy:
    """Of all processes under this one; a parent counts those of its children that have ended."""
    here = psutil.Process().cpu_times()
    workers, tools = here.children_user + here.children_system, 0.0
    for process in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            workers += times.user + times.system
            tools += times.children_user + times.children_system
            tools += sum(sum(child.cpu_times()[:4]) for child in process.children(recursive=True))
    return Busy(here.user + here.system, workers, tools)


def one_estimate(bundle: Path, *options: str) -> tuple[float, float]:
    """Seconds by the clock and of all cores, of `tvmattend estimate` from its start to its end."""
    began, before = time.monotonic(), busy()
    command = [sys.executable, "-m", "tvmattend", "estimate", str(bundle), "--json", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began, sum(busy().since(before))


def candidates(model: str, trials: int, place: Path) -> tuple[int, float, Busy]:
    """Candidates that were timed, seconds by the clock, and of all cores."""
    marks: list[tuple[int, float, Busy]] = []

    def watch(event: Any) -> None:
        if isinstance(event, TrialDone) and (not marks or event.done in {_FIRST, trials}):
            marks.append((event.done, time.monotonic(), busy()))

    options = TuneOptions(trials=trials)
    target = parse_target("cortex-a72", 1)
    tune(model, target, options=options, output=place, model=KernelModel(),
         log=place / "tune.log", observer=watch)  # fmt: skip
    if len(marks) < 3:
        raise BenchmarkError(
            f"{model} has fewer than {trials} candidates",
            "give fewer --trials, or a larger network",
        )
    first, last = marks[-2], marks[-1]
    return last[0] - first[0], last[1] - first[1], last[2].since(first[2])


@click.command()
@click.option("--model", default="attendnext")
@click.option("--trials", default=64, type=click.IntRange(2 * _FIRST))
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Not built anew.")
def main(model: str, trials: int, bundle: Path | None) -> None:
    """Print the figures."""
    print(f"$ python benchmarks/estimate_cost.py --trials {trials}")
    print(f"{psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f} at the start\n")
    with tempfile.TemporaryDirectory() as place:
        if bundle is None:
            bundle = Path(place) / "bundle"
            build(ModelRequest(model), parse_target("cortex-a72"), output=bundle)
        print(f"one estimate of {model:<16}{'seconds':>9}{'of cores':>10}")
        for name, options in (("with caches", ()), ("without", ("--no-caches",))):
            wall, cores = one_estimate(bundle, *options)
            print(f"{name:<32}{wall:>7.1f}{cores:>10.1f}", flush=True)
        count, wall, each = candidates(model, trials, Path(place))
    print(f"\n{count} candidates in {wall:.0f} s: {count / wall:.2f} a second; of cores "
          f"{sum(each) / count:.2f} s each")  # fmt: skip
    print(f"  search {each.here / count:.2f}, building and the model {each.workers / count:.2f}, "
          f"QEMU, LLVM's tools and linker {each.tools / count:.2f}")  # fmt: skip
    print(f"  alone on two cores: {2 * count / sum(each):.2f} a second")


if __name__ == "__main__":
    with errors_told():
        main()
