# SPDX-License-Identifier: Apache-2.0
"""Where each kernel's cycles go on a Cortex-A72: `python benchmarks/a72_kernels.py BUNDLE`.

Estimated twice, with the caches and with every access a hit, one thread. Of the first: the cycles,
the multiply-adds (one a cycle is the peak), and what each resource is needed for, if nothing else
held it up: the FMA ports (with SiLU, transforms and copies of registers), the front end, L2, DRAM.
The difference of the two is what memory costs beyond what hides behind computing. One kernel's
estimate of another run of the sampler differs by up to 5 % where it waits for DRAM.
"""

import sys
from pathlib import Path

import click

from tvmattend.bench.results import results_option, write_text
from tvmattend.cli.main import errors_told
from tvmattend.machine.bundles import estimate_bundle

RESULTS = Path(__file__).parent / "results"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@results_option(RESULTS)
def main(bundle: Path, results: Path) -> None:
    """Print the table and write `results/a72-kernels.txt`."""

    def progress(text: str) -> None:
        print(text, file=sys.stderr)

    found = estimate_bundle(bundle, progress=progress)
    hits = {part.name: part for part in estimate_bundle(bundle, caches=False).parts}
    columns = ("cycles", "all hits", "FMAs", "of peak", "ports", "front", "L2", "DRAM")
    lines = [f"{'M cycles':28} calls" + "".join(f"{name:>9}" for name in columns)]
    for part in (found.whole, *found.parts):
        if part.cycles < 1e5:
            continue
        ideal = (
            sum(hit.cycles for hit in hits.values())
            if part is found.whole
            else hits[part.name].cycles
        )
        needs = (part.resources[key] for key in ("FMA ports", "front end", "L2", "DRAM"))
        numbers = (part.cycles, ideal, part.fma)
        row = "".join(f"{number / 1e6:9.2f}" for number in numbers)
        row += f"{part.fma / part.cycles:9.0%}" + "".join(f"{n / 1e6:9.2f}" for n in needs)
        lines.append(f"{part.name:28} {part.calls or '':>5}{row}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    write_text(results / "a72-kernels.txt", text)


if __name__ == "__main__":
    with errors_told():
        main()
