# SPDX-License-Identifier: Apache-2.0
"""What records are worth: `python benchmarks/untuned_vs_tuned.py`.

The same network built twice, with the records that ship (or those given) and with every kernel's
default schedule, timed in turns. The goal: untuned takes at most 1.5 times as long.
"""

import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import click

from tvmattend.bench.catalogue import OURS, UNTUNED
from tvmattend.bench.comparison import Options, compare
from tvmattend.bench.host import machine_line
from tvmattend.bench.results import results_option, results_path, target_option, write_entries
from tvmattend.bench.timing import ratio, ratio_range
from tvmattend.cli.main import errors_told
from tvmattend.frontend import ModelRequest
from tvmattend.models import REGISTRY
from tvmattend.target import TargetSpec
from tvmattend.tuning.records import find_records

RESULTS = Path(__file__).parent / "results"
LIMIT = 1.5


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(REGISTRY)))
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--tuning-records", multiple=True, type=click.Path(path_type=Path))
@target_option()
@results_option(RESULTS)
def main(
    models: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int,
    tuning_records: tuple[Path, ...],
    target: TargetSpec,
    results: Path,
) -> None:
    """Compare the two builds and write `results/untuned-<machine>.json`."""
    entries = []
    machine = None
    for model in models or ("attendnext",):
        for count in threads:
            threaded = replace(target, num_cores=count)
            records = find_records(model, threaded, tuning_records)
            if not records.records:
                raise click.ClickException(f"no records for {model} on {threaded.describe()}")
            comparison = compare(
                ModelRequest(model),
                threaded,
                Options(threads=count, against=(UNTUNED,), rounds=rounds, records=tuning_records),
                lambda text: print(text, file=sys.stderr),
            )
            machine = comparison.machine
            tuned, untuned = comparison.timing(OURS), comparison.timing(UNTUNED)
            times, (low, high) = ratio(untuned, tuned), ratio_range(untuned, tuned)
            print("\n".join([comparison.title(), machine_line(machine), *comparison.notes()]))
            print(
                f"tuned {tuned.median * 1e3:.3f} ms, untuned {untuned.median * 1e3:.3f} ms: "
                f"untuned takes {times:.3f} times as long (middle half of the rounds: "
                f"{low:.3f} to {high:.3f}; at most {LIMIT} wanted); {records.describe()}\n",
                flush=True,
            )
            entries.append({
                **comparison.to_json(),
                "untuned_by_tuned": round(times, 4),
                "limit": LIMIT,
            })
    if machine is not None:
        path = results_path(results, "untuned", machine, target)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_entries(path, {"date": date, "target": target.name, "comparisons": entries})
        print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    with errors_told():
        main()
