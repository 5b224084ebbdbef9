# SPDX-License-Identifier: Apache-2.0
"""How soon a search is good: `python benchmarks/search_efficiency.py RECORDS.jsonl`.

Reads the unpruned records of one long run, in the order of its trials (the same seed gives the same
plan, so a shorter run is the longer one's beginning), and prints

- for every kernel, the best of its first 16 trials against the best of its first 256 (of all that
  the run gave it, where those are fewer), as a share of the speed;
- for the network, the sum of its kernels' best times after a quarter of the run against the end's.

    tvmattend tune --target host --threads 1 --trials 400 -o DIR
"""

import json
import math
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from tvmattend.frontend import import_model
from tvmattend.models import REGISTRY
from tvmattend.target import parse_target
from tvmattend.transform import lower
from tvmattend.tuning.record import Record
from tvmattend.tuning.record_file import read_records
from tvmattend.tuning.tasks import extract_tasks

RESULTS = Path(__file__).parent / "results"
FEW, MANY = 16, 256


def best(records: list[Record]) -> float:
    """Seconds of the fastest trial; infinity where none succeeded."""
    return min((record.seconds for record in records), default=math.inf)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", type=click.Choice(list(REGISTRY)), default="attendnext")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def main(file: Path, model: str, results: Path) -> None:
    """Print the two figures and write `results/search-<core>.json`."""
    records, _ = read_records(file)
    first = records[0]
    target = parse_target(dict(first.target))
    tasks = {
        task.key: task
        for task in extract_tasks(lower(import_model(model).ir_module, target), target)
    }
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record.key].append(record)
    rows: list[dict[str, Any]] = []
    for key, task in tasks.items():
        mine = by_task[key]
        few, many = best(mine[:FEW]), best(mine[:MANY])
        rows.append({
            "kernel": task.name,
            "family": task.space.kernel,
            "points": task.space.size,
            "trials": len(mine),
            "default_us": round(mine[0].seconds * 1e6, 2) if mine else None,
            "few_us": round(few * 1e6, 2),
            "many_us": round(many * 1e6, 2),
            "share": round(many / few, 4),
        })
        print(
            f"{task.name:40} {task.space.size:6} points, {len(mine):4} trials: "
            f"first {few * 1e6:9.1f} us, all {many * 1e6:9.1f} us, {many / few:6.1%}"
        )
    quarter = records[: len(records) // 4]
    begun = {record.key for record in quarter}
    totals = [
        sum(task.weight * best([r for r in some if r.key == key]) for key, task in tasks.items())
        for some in (quarter, records)
    ]
    shares = sorted(row["share"] for row in rows if row["trials"])
    behind = totals[0] / totals[1] - 1
    most = min(MANY, max(row["trials"] for row in rows))
    print(
        f"{FEW} trials of a kernel reach {shares[0]:.1%} of the speed of up to {most} or more "
        f"(median {shares[len(shares) // 2]:.1%}); {len(quarter)} trials of all end {behind:.1%} "
        f"behind {len(records)} ({len(begun)} of {len(tasks)} kernels begun)"
    )
    results.mkdir(exist_ok=True)
    path = results / f"search-{model}-{target.name}-{first.origin}-{target.num_cores}.json"
    text = json.dumps(
        {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": model,
            "target": target.describe(),
            "origin": first.origin,
            "machine": dict(first.machine),
            "seed": first.seed,
            "kernels": rows,
            "quarter": {"trials": len(quarter), "seconds": totals[0]},
            "whole": {"trials": len(records), "seconds": totals[1]},
        },
        indent=1,
    )
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
