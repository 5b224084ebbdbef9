# SPDX-License-Identifier: Apache-2.0
"""Size, time to load and memory of a bundle: `python benchmarks/footprint.py`.

A bundle is built, and its own wrapper loads and runs it in a fresh Python, as on a device:
nothing of tvmattend, torch or the compiler is in that process.

    library     wanted: the network's weights and 1 MB
    load        the wrapper's `load`, everything imported; it checks the SHA-256 of all files, which
                is timed alone as well; wanted: 100 ms
    memory      growth of the resident set from before `load` to after the inferences; wanted: the
                weights, the activations as planned, and 30 MB
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from tvmattend.bench.host import describe_machine, machine_line
from tvmattend.bench.results import (
    read_entries,
    results_option,
    results_path,
    target_option,
    write_entries,
)
from tvmattend.bundle.manifest import FORMATS
from tvmattend.cli.main import errors_told
from tvmattend.codegen import build
from tvmattend.models import REGISTRY, lookup, parameters
from tvmattend.target import TargetSpec

RESULTS = Path(__file__).parent / "results"
MEGABYTE = 1e6
SPARE_LIBRARY, SPARE_MEMORY, LOAD_MS = 1 * MEGABYTE, 30 * MEGABYTE, 100.0

# Runs in the bundle; prints one JSON object. VmRSS is in kB.
PROBE = """
import json, re, sys, time
sys.path.insert(0, sys.argv[1])
sys.modules["torch"] = None  # tvm_ffi imports it where it can, and a device has none
import numpy, tvm_ffi
import tvmattend_runtime as runtime

def resident():
    text = open("/proc/self/status", encoding="ascii").read()
    return 1024 * int(re.search(r"VmRSS:\\s*(\\d+)", text)[1])

before = resident()
start = time.perf_counter()
bundle = runtime.Path(sys.argv[1])
runtime.check_files(bundle, runtime.read_manifest(bundle)["files"])
checked = time.perf_counter()
net = runtime.load(bundle)
loaded = time.perf_counter()
planned = 0
def see(_function, name, first, _result, *args):
    global planned
    if first and name == "vm.builtin.alloc_storage":
        planned += int(numpy.prod([int(extent) for extent in args[1]]))
    return 0
inputs = net.golden()[0][0]
for _ in range(20):
    net(*inputs)
after = resident()
vm = getattr(net._executor, "_vm", None)
if vm is not None:
    vm["set_instrument"](see)
    net(*inputs)
    vm["set_instrument"](None)
print(json.dumps({"check": checked - start, "load": loaded - checked,
                  "grown": after - before, "resident": after, "planned": planned}))
"""


def probe(bundle: Path) -> dict[str, Any]:
    """Load and run a bundle in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(bundle)], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@click.command()
@click.option("--model", default="attendnext", type=click.Choice(list(REGISTRY)))
@click.option(
    "--format", "kind", default="vm", show_default=True, type=click.Choice(FORMATS),
    help="Of the bundle.",
)  # fmt: skip
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Processes; the median counts.",
)
@target_option()
@results_option(RESULTS)
def main(model: str, kind: str, repeat: int, target: TargetSpec, results: Path) -> None:
    """Measure and write `results/footprint-<machine>.json`."""
    weights = 4 * parameters(lookup(model))
    with tempfile.TemporaryDirectory(prefix="tvmattend-footprint-") as scratch:
        bundle = Path(scratch) / "bundle"
        build(
            model, replace(target, num_cores=1), output=bundle, format=kind,
            observer=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        library = (bundle / manifest["library"]).stat().st_size
        runs = [probe(bundle) for _ in range(repeat)]
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    machine = describe_machine()
    wanted = weights + middle["planned"] + SPARE_MEMORY
    print(f"{model}, format {kind}, for {target.name}\n{machine_line(machine)}")
    print(
        f"library  {library / MEGABYTE:.2f} MB (weights {weights / MEGABYTE:.2f}; "
        f"at most {(weights + SPARE_LIBRARY) / MEGABYTE:.2f} wanted)\n"
        f"load     {middle['load'] * 1e3:.1f} ms, of which the SHA-256 of all files takes "
        f"{middle['check'] * 1e3:.1f} ms (at most {LOAD_MS:.0f} ms wanted)\n"
        f"memory   grows by {middle['grown'] / MEGABYTE:.1f} MB to "
        f"{middle['resident'] / MEGABYTE:.1f} (weights + {middle['planned'] / MEGABYTE:.2f} MB of "
        f"planned activations + 30 = {wanted / MEGABYTE:.1f} wanted)"
    )
    path = results_path(results, "footprint", machine, target)
    entries = read_entries(path, {})
    entries[f"{model}, {kind}"] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "target": target.name,
        "library_bytes": library,
        "weight_bytes": weights,
        "load_ms": round(middle["load"] * 1e3, 2),
        "check_ms": round(middle["check"] * 1e3, 2),
        "planned_activation_bytes": middle["planned"],
        "resident_growth_bytes": middle["grown"],
        "resident_bytes": middle["resident"],
    }
    write_entries(path, entries)
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    with errors_told():
        main()
