# SPDX-License-Identifier: Apache-2.0
"""Make a folder for `a72_validation.py --published` from a checkout of ncnn.

    python benchmarks/ncnn_published.py CHECKOUT OUT [--without DIR]

ncnn's maintainers publish how long the networks of its `benchmark/models` take on a Raspberry Pi
4 Model B at 1.8 GHz (`benchmark/README.md`), with one and four threads; the sizes of their inputs
are in `benchmark/benchncnn.cpp`. Networks that DIR has are left out: those that the parameters of
the model were fitted on.
"""

import csv
import re
import shutil
from pathlib import Path

import click

_BOARD = "### Raspberry Pi 4 Model B"
_THREADS = re.compile(r"^num_threads = (\d+)", re.MULTILINE)
_TIME = re.compile(r"^\s*(\S+)\s+min =.*avg =\s*([\d.]+)", re.MULTILINE)
_INPUT = re.compile(r'benchmark\("([^"]+)", ncnn::Mat\((\d+), (\d+), (\d+)\)')
_COLUMNS = ("network", "input_whc", "one_thread_ms", "four_threads_ms")


def published(readme: str) -> dict[int, dict[str, str]]:
    """Mean milliseconds by threads and network."""
    board = readme.split(_BOARD, 1)[1].split("\n### ", 1)[0]
    runs = _THREADS.split(board)[1:]
    return {
        int(threads): dict(_TIME.findall(times))
        for threads, times in zip(runs[::2], runs[1::2], strict=True)
    }


@click.command()
@click.argument("checkout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--without", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(checkout: Path, out: Path, without: Path | None) -> None:
    """Write OUT/published.csv and a .param file a network."""
    home = checkout / "benchmark"
    times = published((home / "README.md").read_text(encoding="utf-8"))
    sizes = _INPUT.findall((home / "benchncnn.cpp").read_text(encoding="utf-8"))
    known = {path.stem for path in without.glob("*.param")} if without else set()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "published.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(_COLUMNS)
        for name, *shape in sizes:
            param = home / "models" / f"{name}.param"
            if name in known or name not in times[1] or not param.is_file():
                continue
            shutil.copy(param, out)
            rows.writerow([name, "x".join(shape), times[1][name], times[4][name]])
            click.echo(name)


if __name__ == "__main__":
    main()
