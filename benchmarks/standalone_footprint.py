# SPDX-License-Identifier: Apache-2.0
"""Size, start and memory of a standalone library: `python benchmarks/standalone_footprint.py`.

The library is loaded and run by the file that its bundle brings, in a fresh Python that imports
numpy and nothing else.

    library     `lib<name>.so` without the weights in it; wanted: 1 MB
    start       dlopen and the creation of an instance; wanted: 20 ms
    memory      the peak of the resident set, from before the start to after the inferences; wanted:
                the weights, the instance's arena, its threads' scratch and 2 MB
"""

import json
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from tvmattend.bench.host import describe_machine, machine_line, machine_slug
from tvmattend.bench.results import results_option, write_entries
from tvmattend.cli.main import errors_told
from tvmattend.codegen import build
from tvmattend.models import REGISTRY
from tvmattend.target import host_target

RESULTS = Path(__file__).parent / "results"
MEGABYTE = 1e6
SPARE_LIBRARY, SPARE_MEMORY, START_MS = 1 * MEGABYTE, 2 * MEGABYTE, 20.0

# Runs beside the bundle; prints one JSON object. The kernel counts in kB.
PROBE = """
import json, re, sys, time
sys.path.insert(0, sys.argv[1])
import numpy
from tvmattend_standalone import Library

def resident(kind):
    text = open("/proc/self/status", encoding="ascii").read()
    return 1024 * int(re.search(kind + r":\\s*(\\d+)", text)[1])

with numpy.load(sys.argv[1] + "/golden.npz") as archive:
    x = [archive["input0"][:1]]
open("/proc/self/clear_refs", "w").write("5")  # forget the peak that importing reached
before = resident("VmRSS")
start = time.perf_counter()
net = Library(sys.argv[2], int(sys.argv[3]))
created = time.perf_counter()
for _ in range(20):
    net.run([x[0].reshape(net.inputs[0].shape)])
info = net.info
print(json.dumps({"start": created - start, "grown": resident("VmHWM") - before,
                  "weights": info["weight_bytes"], "arena": info["arena_bytes"],
                  "scratch": net.threads * info["thread_bytes"]}))
"""


@click.command()
@click.option("--model", default="attendnext", type=click.Choice(list(REGISTRY)))
@click.option(
    "--threads", multiple=True, type=click.IntRange(1), default=(1, 2, 4), show_default=True
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Processes; the median counts.",
)
@results_option(RESULTS)
def main(model: str, threads: tuple[int, ...], repeat: int, results: Path) -> None:
    """Measure and write `results/standalone-footprint-<machine>.json`."""
    machine = describe_machine()
    print(f"{model}\n{machine_line(machine)}")
    entries = {}
    with tempfile.TemporaryDirectory(prefix="tvmattend-footprint-") as scratch:
        bundle = Path(scratch) / "bundle"
        build(model, host_target(), output=bundle, format="standalone")
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        library = bundle / manifest["library"]
        for count in threads:
            entry = measure(bundle, library, count, repeat)
            print(describe(entry, count))
            entries[f"{count} threads"] = entry
    path = results / f"standalone-footprint-{machine_slug(machine)}.json"
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    found = {"date": stamp, "machine": machine, "model": model, "entries": entries}
    write_entries(path, found)
    print(f"written: {path}", file=sys.stderr)


def measure(bundle: Path, library: Path, threads: int, repeat: int) -> dict[str, Any]:
    """Load and run the library in fresh processes; medians in bytes and seconds."""
    command = [sys.executable, "-c", PROBE, bundle, library, threads]
    runs = []
    for _ in range(repeat):
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {"library": library.stat().st_size, **middle}


def describe(entry: dict[str, Any], threads: int) -> str:
    """Three lines for a person."""
    rest = entry["library"] - entry["weights"]
    wanted = entry["weights"] + entry["arena"] + entry["scratch"] + SPARE_MEMORY
    parts = [f"{entry[key] / MEGABYTE:.2f}" for key in ("weights", "arena", "scratch")]
    return (
        f"{threads} threads\n"
        f"  library  {entry['library'] / MEGABYTE:.2f} MB, without the weights "
        f"{rest / MEGABYTE:.2f} (at most {SPARE_LIBRARY / MEGABYTE:.0f} wanted)\n"
        f"  start    {entry['start'] * 1e3:.2f} ms (at most {START_MS:.0f} wanted)\n"
        f"  memory   grows by {entry['grown'] / MEGABYTE:.2f} MB at most "
        f"({' + '.join(parts)} + 2 = {wanted / MEGABYTE:.2f} wanted)"
    )


if __name__ == "__main__":
    with errors_told():
        main()
