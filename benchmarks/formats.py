# SPDX-License-Identifier: Apache-2.0
"""The standalone library beside the Relax VM: `python benchmarks/formats.py`.

The same scheduled kernels in both formats of a bundle, timed in turns, each in a process of its
own: in one process the idle threads of TVM's pool, which spin, take the core that the library's
pool needs. The goal: the library is never the slower one. What lies between the kernels of either
is printed by `tvmattend profile BUNDLE`.
"""

import sys
from datetime import datetime, timezone
from pathlib import Path

import click

from tvmattend.bench.comparison import Options, compare
from tvmattend.bench.host import machine_line, machine_slug
from tvmattend.bench.results import results_option, write_entries
from tvmattend.bench.timing import ratio, ratio_range
from tvmattend.cli.main import errors_told
from tvmattend.frontend import ModelRequest
from tvmattend.models import REGISTRY
from tvmattend.target import host_target

RESULTS = Path(__file__).parent / "results"
VM, LIBRARY = "tvmattend-vm", "tvmattend-standalone"


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(REGISTRY)))
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
@results_option(RESULTS)
def main(models: tuple[str, ...], threads: tuple[int, ...], rounds: int, results: Path) -> None:
    """Compare the two formats and write `results/formats-<machine>.json`."""
    entries = []
    machine = None
    for model in models or ("attendnext",):
        for count in threads:
            comparison = compare(
                ModelRequest(model),
                host_target(count),
                Options(threads=count, against=(VM, LIBRARY), rounds=rounds),
                lambda text: print(text, file=sys.stderr),
            )
            machine = comparison.machine
            vm, library = comparison.timing(VM), comparison.timing(LIBRARY)
            gain, (low, high) = ratio(vm, library), ratio_range(vm, library)
            print("\n".join([comparison.title(), machine_line(machine), *comparison.notes()]))
            print(
                f"VM {vm.median * 1e3:.3f} ms, library {library.median * 1e3:.3f} ms: the library "
                f"is {gain:.3f}x as fast (middle half of the rounds: {low:.3f} to {high:.3f})\n",
                flush=True,
            )
            entries.append({**comparison.to_json(), "vm_by_library": round(gain, 4)})
    if machine is not None:
        path = results / f"formats-{machine_slug(machine)}.json"
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_entries(path, {"date": date, "comparisons": entries})
        print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    with errors_told():
        main()
