# SPDX-License-Identifier: Apache-2.0
"""How soon a search is good: `python benchmarks/search_efficiency.py RECORDS.jsonl [--again]`.

Reads the unpruned records of one long run, in the order of its trials (the same seed gives the same
plan, so a shorter run is the longer one's beginning), and prints

- for every kernel, the best of its first 16 trials against the best of its first 256 (of all that
  the run gave it, where those are fewer), as a share of the speed;
- for the network, the sum of its kernels' best times after a quarter of the run against the end's.

    tvmattend tune --target host --threads 1 --trials 400 -o DIR

A machine whose clock drifts makes the first trials look slow, and a search takes the luckiest of
its times for the best. `--again` builds the points that were best then and there once more, and
times them in turns, here.
"""

import json
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click

from tvmattend.bench.host import Load
from tvmattend.bench.results import results_option, write_entries
from tvmattend.bench.timing import interleave
from tvmattend.cli.main import errors_told
from tvmattend.codegen.link import Linker
from tvmattend.errors import RecordsError
from tvmattend.frontend import import_model
from tvmattend.models import REGISTRY
from tvmattend.target import TargetSpec, parse_target
from tvmattend.transform import lower
from tvmattend.tuning.record import Record
from tvmattend.tuning.record_file import read_records
from tvmattend.tuning.search import scheduled
from tvmattend.tuning.tasks import Task, extract_tasks
from tvmattend.tuning.workers import make_kernel

RESULTS = Path(__file__).parent / "results"
FEW, MANY = 16, 256
ROUNDS = 41  # turns of each point
TURN = 0.01  # seconds of calls in a turn


def best(records: list[Record]) -> Record | None:
    """The fastest trial; None where none succeeded."""
    return min((record for record in records if record.ok), key=lambda r: r.seconds, default=None)


def timed_again(
    task: Task, points: list[Mapping[str, int]], target: TargetSpec, place: Path
) -> list[float]:
    """Seconds of points of a task, the medians of turns that they take."""
    import numpy as np
    import tvm
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo

    info = ArgInfo.from_entry_func(task.mod, remove_preproc=False)
    noise = np.random.default_rng(0)
    shapes = [tuple(int(size) for size in each.shape) for each in info]
    arguments = [tvm.runtime.tensor(noise.standard_normal(s).astype("float32")) for s in shapes]

    def burst(kernel: Any, calls: int) -> list[float]:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            kernel(*arguments)
            times.append(time.perf_counter() - began)
        return times

    bursts = {}
    for point in points:
        name = json.dumps(dict(point), sort_keys=True)
        if name not in bursts:
            mod = scheduled(task, point).schedule.mod
            library = make_kernel(mod, target.to_tvm(), str(place), Linker(target))
            kernel = tvm.runtime.load_module(library)["main"]
            bursts[name] = partial(burst, kernel, max(1, round(TURN / min(burst(kernel, 3)))))
    timings, _ = interleave(bursts, ROUNDS)
    return [timings[json.dumps(dict(point), sort_keys=True)].median for point in points]


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", type=click.Choice(list(REGISTRY)), default="attendnext")
@click.option("--again", is_flag=True, help="Time the best points once more, in turns.")
@results_option(RESULTS)
def main(file: Path, model: str, again: bool, results: Path) -> None:
    """Print the two figures and write `results/search-<model>-<target>-<origin>-<threads>.json`."""
    records, _ = read_records(file)
    if not records:
        raise RecordsError(f"{file} holds no tuning records", "give a file that `tune` wrote")
    first = records[0]
    target = parse_target(dict(first.target))
    if again and not target.is_host:
        raise click.UsageError(f"--again runs kernels, and this machine is no {target.describe()}")
    # Read when TVM's pool of threads starts, with the first kernel.
    os.environ["TVM_NUM_THREADS"] = str(target.num_cores)
    tasks = {
        task.key: task
        for task in extract_tasks(lower(import_model(model).ir_module, target), target)
    }
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record.key].append(record)
    quarter = records[: len(records) // 4]
    others = Load(sorted(os.sched_getaffinity(0)), [os.getpid()])
    rows: list[dict[str, Any]] = []
    for key, task in tasks.items():
        mine = by_task[key]
        # A kernel that a short run never tried has its default schedule.
        found = {
            "default": next(iter(mine), None),
            "few": best(mine[:FEW]),
            "quarter": best([record for record in quarter if record.key == key])
            or next(iter(mine), None),
            "many": best(mine[:MANY]),
            "all": best(mine),
        }
        good = {name: record for name, record in found.items() if record is not None}
        if again:
            points = [record.point for record in good.values()]
            with tempfile.TemporaryDirectory(prefix="tvmattend-search-") as place:
                times = timed_again(task, points, target, Path(place))
            seconds = dict(zip(good, times, strict=True))
        else:
            seconds = {name: record.seconds for name, record in good.items()}
        seconds = {name: seconds.get(name, math.inf) for name in found}
        rows.append({
            "kernel": task.name,
            "family": task.space.kernel,
            "points": task.space.size,
            "trials": len(mine),
            "weight": task.weight,
            **{f"{name}_us": round(value * 1e6, 2) for name, value in seconds.items()},
            "share": round(seconds["many"] / seconds["few"], 4),
        })
        print(
            f"{task.name:40} {task.space.size:6} points, {len(mine):4} trials: first "
            f"{seconds['few'] * 1e6:9.1f} us, all {seconds['many'] * 1e6:9.1f} us, "
            f"{rows[-1]['share']:6.1%}",
            flush=True,
        )
    begun = {record.key for record in quarter}
    totals = [sum(row["weight"] * row[f"{name}_us"] for row in rows) for name in ("quarter", "all")]
    shares = sorted(row["share"] for row in rows if row["trials"])
    behind = totals[0] / totals[1] - 1
    most = min(MANY, max(row["trials"] for row in rows))
    busy = others.others() if again else None
    print(
        f"{FEW} trials of a kernel reach {shares[0]:.1%} of the speed of up to {most} or more "
        f"(median {shares[len(shares) // 2]:.1%}); {len(quarter)} trials of all end {behind:.1%} "
        f"behind {len(records)} ({len(begun)} of {len(tasks)} kernels begun); "
        + ("timed again, in turns" if again else "as recorded")
        + ("" if busy is None else f", others took {busy:.0%} of the machine")
    )
    path = results / f"search-{model}-{target.name}-{first.origin}-{target.num_cores}.json"
    write_entries(
        path,
        {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": model,
            "target": target.describe(),
            "origin": first.origin,
            "machine": dict(first.machine),
            "seed": first.seed,
            "again": again,
            "others": busy,
            "kernels": rows,
            "quarter": {"trials": len(quarter), "seconds": totals[0] / 1e6},
            "whole": {"trials": len(records), "seconds": totals[1] / 1e6},
        },
    )


if __name__ == "__main__":
    with errors_told():
        main()
