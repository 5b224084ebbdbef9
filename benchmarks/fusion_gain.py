# SPDX-License-Identifier: Apache-2.0
"""What fusion is worth: `python benchmarks/fusion_gain.py`.

Each DC-AC block of a network, and the network, built twice: as `tvmattend build` does, and as
`tvmattend build --no-fusion` does, which has the same kernels, layouts by the same rule and the
same tuning, but leaves fusion to TVM's own FuseOps. Both are timed in turns on this machine, and
estimated for a Cortex-A72. The goal: the network gains at least 1.15x, and no block loses.

A block stands alone, with its weights and the size of its input: what its neighbours pay for a
change of layout at its edges, it pays here.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import nn

from tvmattend.bench.host import Load, describe_machine, machine_line
from tvmattend.bench.results import (
    read_entries,
    results_option,
    results_path,
    target_option,
    write_entries,
    write_text,
)
from tvmattend.cli.main import errors_told
from tvmattend.codegen import build
from tvmattend.frontend import ModelRequest
from tvmattend.machine.bundles import estimate_bundle
from tvmattend.models import REGISTRY, create
from tvmattend.runtime import load
from tvmattend.target import TargetSpec, parse_target
from tvmattend.tuning import TuneOptions, tune

RESULTS = Path(__file__).parent / "results"
NETWORK_GAIN = 1.15
PAUSE = 0.01  # seconds before a turn: idle threads of the other have stopped to spin
TURN = 0.02  # seconds of inferences in a turn
# One process is no measurement: its addresses have made a kernel 7 to 25 % slower in every round.
PROCESSES = 8
KINDS = ("fused", "unfused")


def _block(model: str, stage: int) -> nn.Module:
    """The DC-AC block of a stage, with the network's weights and the input that it has there."""
    network = create(model)
    size = REGISTRY[model].input_size // 4
    for number, blocks in enumerate(network.stages):
        block = blocks[0]
        if number == stage:
            channels = block.project.conv.in_channels
            block.input_shape = (channels, size, size)
            return block
        size //= 2 if block.condense is not None else 1
    raise ValueError(f"{model} has no stage {stage}")


# Factories that `ModelRequest` finds by name: `fusion_gain:attendnext_stage1`.
globals().update({
    f"{model}_stage{stage + 1}": partial(_block, model, stage)
    for model, architecture in REGISTRY.items()
    for stage in range(len(architecture.stages))
})


def subjects(model: str) -> list[str]:
    """The network's blocks, then the network, as `ModelRequest` knows them."""
    stages = len(REGISTRY[model].stages)
    return [*(f"fusion_gain:{model}_stage{stage + 1}" for stage in range(stages)), model]


@click.command()
@click.option("--model", type=click.Choice(list(REGISTRY)), default="attendnext", show_default=True)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(0),
    default=(1, 2),
    show_default=True,
    help="Of this machine; 0 keeps what was measured before.",
)
@click.option(
    "--rounds", type=click.IntRange(2), default=100, show_default=True, help="Turns of each."
)
@click.option(
    "--trials",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of each build; 0: defaults.",
)
@click.option("--records", type=click.Path(path_type=Path), help="Where trials are kept.")
@click.option(
    "--estimate",
    "boards",
    multiple=True,
    type=click.IntRange(0),
    default=(1, 4),
    show_default=True,
    help="Threads of the Cortex-A72; 0 for no estimate.",
)
@target_option()
@results_option(RESULTS)
def main(
    model: str,
    threads: tuple[int, ...],
    rounds: int,
    trials: int,
    records: Path | None,
    boards: tuple[int, ...],
    target: TargetSpec,
    results: Path,
) -> None:
    """Compare, print, and write `results/fusion-<machine>.{json,md}`."""
    machine = describe_machine()
    path = results_path(results, "fusion", machine, target)
    if not any(threads):
        if not path.is_file():
            raise click.UsageError(f"--threads 0: nothing was measured before, there is no {path}")
        earlier = read_entries(path, None)
        if earlier["model"] != model:
            raise click.UsageError(f"--threads 0: {path} is of {earlier['model']}")
        trials, machine = earlier["trials"], earlier["machine"]
    entries = []
    with tempfile.TemporaryDirectory(prefix="tvmattend-fusion-") as scratch:
        place = Path(scratch)
        for count in filter(None, threads):
            threaded = replace(target, num_cores=count)
            kept = None
            if trials:
                kept = (records or place / "records") / f"{count}-threads"
                _tune(model, threaded, trials, kept)
            for subject in subjects(model):
                entries.append(_timed(subject, threaded, rounds, kept, place))
                print(_line(entries[-1]), flush=True)
        for count in filter(None, boards):
            for subject in subjects(model):
                entries.append(_estimated(subject, count, place))
                print(_line(entries[-1]), flush=True)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if not any(threads):
        measured = [entry for entry in earlier["entries"] if entry["how"] == "measured"]
        entries = [{"date": earlier["date"], **entry} for entry in measured] + entries
    found = {
        "date": date,
        "machine": machine,
        "target": target.name,
        "model": model,
        "trials": trials,
        "entries": entries,
    }
    write_entries(path, found)
    write_text(path.with_suffix(".md"), document(found))
    print(f"written: {path}", file=sys.stderr)


def _tune(model: str, target: TargetSpec, trials: int, records: Path) -> None:
    """Give both builds of the network the same number of trials."""
    for kind in KINDS:
        tune(
            ModelRequest(model),
            target,
            options=TuneOptions(trials=trials),
            output=records / kind,
            fusion=kind == "fused",
            log=records.parent / "tuning.log",
        )


def _bundles(
    subject: str, target: TargetSpec, records: Path | None, place: Path
) -> dict[str, Path]:
    """Build both kinds."""
    found = {}
    for kind in KINDS:
        found[kind] = place / f"{subject.rpartition(':')[2]}-{target.num_cores}-{kind}"
        build(
            ModelRequest(subject),
            target,
            output=found[kind],
            tuning_records=[] if records is None else [records / kind],
            use_records=records is not None,
            fusion=kind == "fused",
            force=True,
        )
    return found


def _timed(
    subject: str, target: TargetSpec, rounds: int, records: Path | None, place: Path
) -> dict[str, Any]:
    bundles = _bundles(subject, target, records, place)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gains: list[float] = []
    difference, others = 0.0, []
    for number in range(PROCESSES):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            share = rounds // PROCESSES + (number < rounds % PROCESSES)
            turns = fresh.submit(_turns, bundles, target.num_cores, share).result()
        difference = max(difference, turns["difference"])
        gains += turns["gains"]
        others += [turns["others"]] if turns["others"] is not None else []
        for kind in KINDS:
            times[kind] += turns[kind]
    return {
        **_facts(subject, bundles, "measured", target.num_cores),
        **{kind: min(times[kind]) for kind in KINDS},
        "medians": {kind: statistics.median(times[kind]) for kind in KINDS},
        "gain": statistics.median(gains),
        "gain_of_least": min(times["unfused"]) / min(times["fused"]),
        "gain_quartiles": statistics.quantiles(gains, n=4),
        "difference": difference,
        "others": max(others, default=None),
    }


def _turns(bundles: dict[str, Path], threads: int, rounds: int) -> dict[str, Any]:
    """Time both kinds in turns; run in a process of its own."""
    nets = {kind: load(bundle, threads=threads) for kind, bundle in bundles.items()}
    inputs = nets["fused"].golden()[0][0]
    outputs = {kind: net(*inputs) for kind, net in nets.items()}
    difference = np.abs(outputs["fused"] - outputs["unfused"]).max()
    repeat = max(1, round(TURN / min(nets["fused"].time(*inputs, repeat=3))))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gains = []
    others = Load(sorted(os.sched_getaffinity(0)), [os.getpid()])
    for number in range(rounds):
        turn = {}
        for kind in sorted(KINDS, reverse=number % 2 == 0):
            time.sleep(PAUSE)
            seconds = nets[kind].time(*inputs, repeat=repeat, warmup=1)
            times[kind] += seconds
            turn[kind] = statistics.median(seconds)
        gains.append(turn["unfused"] / turn["fused"])
    relative = float(difference / np.abs(outputs["unfused"]).max())
    return {**times, "gains": gains, "difference": relative, "others": others.others()}


def _estimated(subject: str, threads: int, place: Path) -> dict[str, Any]:
    target = parse_target("cortex-a72", threads)
    bundles = _bundles(subject, target, None, place)
    seconds = {kind: estimate_bundle(path, threads).seconds for kind, path in bundles.items()}
    facts = _facts(subject, bundles, "estimated", threads)
    return {**facts, **seconds, "gain": seconds["unfused"] / seconds["fused"]}


def _facts(subject: str, bundles: dict[str, Path], how: str, threads: int) -> dict[str, Any]:
    launches = {}
    for kind, bundle in bundles.items():
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        launches[kind] = len(manifest["launches"])
    name = subject.rpartition(":")[2]
    return {"subject": name, "how": how, "threads": threads, "launches": launches}


def _holds(entry: dict[str, Any]) -> bool:
    return bool(entry["gain"] >= (NETWORK_GAIN if entry["subject"] in REGISTRY else 1.0))


def _line(entry: dict[str, Any]) -> str:
    micro = {kind: f"{entry[kind] * 1e6:.1f}" for kind in KINDS}
    text = (
        f"{entry['subject']}, {entry['threads']} threads, {entry['how']}: unfused "
        f"{micro['unfused']} us in {entry['launches']['unfused']} kernels, fused {micro['fused']} "
        f"in {entry['launches']['fused']}: {entry['gain']:.3f}x"
    )
    if "gain_quartiles" in entry:
        low, _, high = entry["gain_quartiles"]
        text += (
            f" (rounds {low:.3f} to {high:.3f}, least {entry['gain_of_least']:.3f}; outputs differ "
            f"by {entry['difference']:.0e})"
        )
        if entry["others"] is not None and entry["others"] > 0.05:
            text += f", BUSY: others took {entry['others']:.0%}"
    return text + ("" if _holds(entry) else "  <- short of the goal")


def document(found: dict[str, Any]) -> str:
    """The table for readers."""
    trials = f"{found['trials']} trials each" if found["trials"] else "default schedules"
    lines = [
        f"# What fusion is worth on {found['model']}",
        "",
        f"{found['date']}, {machine_line(found['machine'])}; both builds for {found['target']}",
        f"with {trials}.",
        "The least time of each; the gain is the median of the ratios within rounds. `estimated`",
        "is a Cortex-A72 at 1.8 GHz by `tvmattend estimate`, with default schedules. Wanted:",
        f"{NETWORK_GAIN}x for the network, no block below 1.",
        "",
        "| | threads | how | unfused us | kernels | fused us | kernels | gain | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in found["entries"]:
        launches = entry["launches"]
        lines.append(
            f"| {entry['subject']} | {entry['threads']} | {entry['how']} | "
            f"{entry['unfused'] * 1e6:.1f} | {launches['unfused']} | {entry['fused'] * 1e6:.1f} | "
            f"{launches['fused']} | {entry['gain']:.3f}x | {'met' if _holds(entry) else 'missed'} |"
        )
    kept = {entry["date"] for entry in found["entries"] if "date" in entry}
    if kept:
        lines += ["", f"Measured earlier: {', '.join(sorted(kept))}."]
    busy = [entry["others"] for entry in found["entries"] if entry.get("others")]
    if busy and max(busy) > 0.05:
        lines += ["", f"The machine was busy: other processes took up to {max(busy):.0%} of it."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with errors_told():
        main()
