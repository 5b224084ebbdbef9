# SPDX-License-Identifier: Apache-2.0
"""What lies between the kernels: `python benchmarks/standalone_overhead.py`.

The same scheduled kernels as a standalone library and in TVM's virtual machine, in turns: V S, S V,
V S, ... some inferences each, so that a slow moment of the machine falls on both. The goal: the
library is never the slower one.

`kernels` is what the library's one thread spends inside of the kernels, by its own clock; what an
inference takes beyond that is between them. For the virtual machine the same kernel time is
subtracted: there it holds the walk through the bytecode, the packing and checking of arguments, and
the workspace that kernels ask the runtime for.

On a machine that does other things as well, wall times say who was scheduled when: the VM's runtime
hands every call to a thread of its own, so that it waits for a core before its clock starts, while
the library waits inside of the timed call. CPU time and the least wall time do not depend on that.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from tvmattend.bench.host import describe_machine, machine_line, machine_slug
from tvmattend.codegen import build
from tvmattend.models import REGISTRY
from tvmattend.runtime import load
from tvmattend.runtime.standalone import Library
from tvmattend.target import host_target

RESULTS = Path(__file__).parent / "results"
BLOCK = 2  # inferences in a turn
PAUSE = 0.01  # seconds before a turn: idle threads of the other have stopped to spin


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(REGISTRY)))
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--rounds", type=int, default=150, show_default=True, help="Turns of each.")
@click.option(
    "--nice", type=int, default=0, help="Of the timed threads; below 0 on a busy machine, as root."
)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def main(
    models: tuple[str, ...], threads: tuple[int, ...], rounds: int, nice: int, results: Path
) -> None:
    """Compare the two formats and write `results/standalone-<machine>.json`."""
    machine = describe_machine()
    print(machine_line(machine))
    entries = {}
    for model in models or ("attendnext_tiny", "attendnext"):
        for count in threads:
            with tempfile.TemporaryDirectory(prefix="tvmattend-overhead-") as scratch:
                entry = compare(model, count, rounds, nice, Path(scratch))
            print(describe(entry))
            entries[f"{model}, {count} threads"] = entry
    path = results / f"standalone-{machine_slug(machine)}.json"
    results.mkdir(exist_ok=True)
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    found = {"date": stamp, "machine": machine, "entries": entries}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)


def compare(model: str, threads: int, rounds: int, nice: int, scratch: Path) -> dict[str, Any]:
    """Build both formats from the same schedules and time them in turns; seconds."""
    nets = {}
    # A thread for each, as the VM's runtime has one: a scheduler prefers who has slept.
    threads_of = {kind: ThreadPoolExecutor(1) for kind in ("vm", "standalone")}
    for kind in ("vm", "standalone"):
        build(model, host_target(threads), output=scratch / kind, format=kind)
    # Of this thread, and of those that it starts from now on: all that are timed.
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    for kind in ("vm", "standalone"):
        nets[kind] = load(scratch / kind, threads=threads)
    inputs = nets["vm"].golden()[0][0]
    times: dict[str, list[float]] = {"vm": [], "standalone": []}
    cpu: dict[str, list[float]] = {"vm": [], "standalone": []}
    pairs = []
    for number in range(rounds):
        turn = {}
        for kind in sorted(nets, reverse=number % 2 == 0):
            time.sleep(PAUSE)
            before = time.process_time()
            timed = threads_of[kind].submit(nets[kind].time, *inputs, repeat=BLOCK, warmup=1)
            seconds = timed.result()
            cpu[kind].append((time.process_time() - before) / (BLOCK + 2))
            times[kind] += seconds
            turn[kind] = statistics.median(seconds)
        pairs.append(turn["vm"] / turn["standalone"])
    entry: dict[str, Any] = {
        "model": model,
        "threads": threads,
        "rounds": rounds,
        "vm": statistics.median(times["vm"]),
        "standalone": statistics.median(times["standalone"]),
        "best_vm": min(times["vm"]),
        "best_standalone": min(times["standalone"]),
        "ratio_quartiles": statistics.quantiles(pairs, n=4),
        "rounds_won": sum(pair > 1 for pair in pairs),
        "cpu_vm": statistics.median(cpu["vm"]),
        "cpu_standalone": statistics.median(cpu["standalone"]),
        "cpu_ratio_quartiles": statistics.quantiles(
            [one / other for one, other in zip(cpu["vm"], cpu["standalone"], strict=True)], n=4
        ),
        "load": os.getloadavg()[0],
        "nice": nice,
    }
    if threads == 1:
        kernels = _kernel_seconds(scratch / "standalone", inputs, rounds)
        # The least of each: what other processes take is no part of either.
        entry |= {
            "launches": kernels[1],
            "kernels": kernels[0],
            "between_vm": entry["best_vm"] - kernels[0],
            "between_standalone": entry["best_standalone"] - kernels[0],
        }
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    return entry


def _kernel_seconds(bundle: Path, inputs: list[Any], rounds: int) -> tuple[float, int]:
    """The least time inside of the kernels of one inference, and how many there are."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    library = Library(bundle / manifest["library"], 1)
    profiles = [library.profile(inputs) for _ in range(rounds * BLOCK)]
    return min(sum(seconds for _, seconds in steps) for steps in profiles), len(profiles[0])


def describe(entry: dict[str, Any]) -> str:
    """Three lines for a person."""
    low, middle, high = entry["ratio_quartiles"]
    micro = {key: f"{entry[key] * 1e6:.1f}" for key in ("vm", "standalone")}
    lines = [f"{entry['model']}, {entry['threads']} threads, medians in us: "]
    lines[0] += f"VM {micro['vm']}, standalone {micro['standalone']}"
    text = f"  VM / standalone within a round: {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
    lines.append(f"{text}; faster in {entry['rounds_won']} of {entry['rounds']} rounds")
    low, middle, high = entry["cpu_ratio_quartiles"]
    text = f"  CPU time, copies included: {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
    lines.append(f"{text}; load {entry['load']:.1f}; least: VM {entry['best_vm'] * 1e6:.1f}, ")
    lines[-1] += f"standalone {entry['best_standalone'] * 1e6:.1f}"
    if "kernels" in entry:
        lines.append(
            f"  {entry['launches']} kernels take {entry['kernels'] * 1e6:.1f} us; between them: "
            f"VM {entry['between_vm'] * 1e6:.1f} us, "
            f"standalone {entry['between_standalone'] * 1e6:.1f} us"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
