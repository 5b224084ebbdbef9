# SPDX-License-Identifier: Apache-2.0
"""AttendNeXt in tvmattend and in what a user could pick instead: `python benchmarks/peers.py`.

Writes `results/peers-<machine>.json` and `.md` after each comparison, so that a run that is
interrupted leaves what it has. A comparison of the same network, threads and trials is replaced.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from tvmattend.bench.catalogue import AGAINST, parse_against
from tvmattend.bench.comparison import Options, compare
from tvmattend.bench.host import machine_line, machine_slug
from tvmattend.bench.report import Comparison
from tvmattend.bench.results import read_entries, results_option, write_entries, write_text
from tvmattend.cli.main import errors_told
from tvmattend.frontend import ModelRequest
from tvmattend.target import host_target

RESULTS = Path(__file__).parent / "results"
MODELS = ("attendnext", "attendnext_xs", "attendnext_deep")
HEAD = """\
# AttendNeXt beside other runtimes

Printed by `python benchmarks/peers.py`. fp32, batch 1, the same weights, input, threads and cores;
outputs compared with PyTorch's first; the runtimes in turns, each in a process of its own.
`x of ours`: how many times as long as tvmattend it takes.
"""


def store(comparison: Comparison, results: Path) -> tuple[Path, Path]:
    """Add a comparison to this machine's files, or replace the one of its kind.

    That is of its network, threads, and trials of TVM's own pipeline.
    """
    stem = results / f"peers-{machine_slug(comparison.machine)}"
    data, text = stem.with_suffix(".json"), stem.with_suffix(".md")
    entries = read_entries(data, [])
    title = f"## {comparison.title()}"
    entry = {
        **comparison.to_json(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "table": [title, "", machine_line(comparison.machine), "", *comparison.markdown()]
        + [f"Note: {note}." for note in comparison.notes()],
    }
    entries = [old for old in entries if _kind(old) != _kind(entry)] + [entry]
    entries.sort(key=_kind)
    write_entries(data, entries)
    tables = ["\n".join([*each["table"], "", f"Taken {each['date']}."]) for each in entries]
    write_text(text, "\n\n".join([HEAD.strip(), *tables]))
    return data, text


def _kind(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    return MODELS.index(entry["model"]), entry["threads"], entry.get("trials", 0)


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS)
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--against", default=",".join(AGAINST), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option(
    "--trials", type=click.IntRange(0), default=0, help="Tunes TVM's own pipeline that long."
)
@click.option("--tuning-records", multiple=True, type=click.Path(path_type=Path))
@results_option(RESULTS)
def main(
    models: tuple[str, ...],
    threads: tuple[int, ...],
    against: str,
    rounds: int,
    trials: int,
    tuning_records: tuple[Path, ...],
    results: Path,
) -> None:
    """Compare every network with every number of threads."""
    options = Options(
        against=parse_against(against), rounds=rounds, trials=trials, records=tuning_records
    )
    for model in models:
        for count in threads:
            comparison = compare(
                ModelRequest(model),
                host_target(count),
                replace(options, threads=count),
                lambda text: print(text, file=sys.stderr),
            )
            print("\n".join([*comparison.lines(), *comparison.notes(), ""]), flush=True)
            data, text = store(comparison, results)
            print(f"written: {data}, {text}", file=sys.stderr)


if __name__ == "__main__":
    with errors_told():
        main()
