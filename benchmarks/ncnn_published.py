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

from tvmattend.cli.main import errors_told
from tvmattend.errors import InputError

_BOARD = "### Raspberry Pi 4 Model B"
_THREADS = re.compile(r"^num_threads = (\d+)", re.MULTILINE)
_TIME = re.compile(r"^\s*(\S+)\s+min =.*avg =\s*([\d.]+)", re.MULTILINE)
_INPUT = re.compile(r'benchmark\("([^"]+)", ncnn::Mat\((\d+), (\d+), (\d+)\)')
_COLUMNS = ("network", "input_whc", "one_thread_ms", "four_threads_ms")


def published(readme: str) -> dict[int, dict[str, str]]:
    """Mean milliseconds by threads and network."""
    board = readme.partition(_BOARD)[2].partition("\n### ")[0]
    runs = _THREADS.split(board)[1:]
    return {
        int(threads): dict(_TIME.findall(times))
        for threads, times in zip(runs[::2], runs[1::2], strict=True)
    }


def read_checkout(home: Path) -> tuple[dict[int, dict[str, str]], list[tuple[str, ...]]]:
    """Times by threads and network, and each network's name and size.

    Raises:
        InputError: The folder is not ncnn's, or publishes no such times.
    """
    texts = []
    for name in ("README.md", "benchncnn.cpp"):
        if not (home / name).is_file():
            raise InputError(f"there is no {home / name}", "give a checkout of Tencent/ncnn")
        texts.append((home / name).read_text(encoding="utf-8"))
    times = published(texts[0])
    if not {1, 4} <= set(times):
        raise InputError(
            f"{home / 'README.md'} has no times of one and four threads below `{_BOARD}`",
            "commit a4d2ea1 of Tencent/ncnn has them",
        )
    return times, _INPUT.findall(texts[1])


@click.command()
@click.argument("checkout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--without", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(checkout: Path, out: Path, without: Path | None) -> None:
    """Write OUT/published.csv and a .param file a network."""
    home = checkout / "benchmark"
    with errors_told():
        times, sizes = read_checkout(home)
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
