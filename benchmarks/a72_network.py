# SPDX-License-Identifier: Apache-2.0
"""AttendNeXt on a Cortex-A72 that nobody has: tuned, untuned, TVM's default, peers; what bounds it.

    python benchmarks/a72_network.py [--threads 1] [--tuning-records FILE]

All by the same estimator and on the same input, outputs compared with PyTorch's first. Written to
`results/a72-network-N.{json,txt}`. TVM's default schedules take a hundred times our instructions,
and so a quarter of an hour under QEMU; `--against` leaves them out.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from tvmattend.bench.catalogue import TVM_DEFAULT, UNTUNED, parse_against
from tvmattend.bench.estimated import AGAINST, EstimateOptions, compare_estimates
from tvmattend.bench.results import results_option, write_entries, write_text
from tvmattend.cli.main import errors_told
from tvmattend.codegen import build
from tvmattend.frontend import ModelRequest
from tvmattend.machine.bundles import RUNTIME, estimate_bundle
from tvmattend.models import DEFAULT, lookup, parameters
from tvmattend.target import TargetSpec, parse_target

RESULTS = Path(__file__).parent / "results"
TOP = 10
EVERYTHING = ",".join((UNTUNED, TVM_DEFAULT, *AGAINST))


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def kernels(model: str, target: TargetSpec, records: tuple[Path, ...]) -> dict[str, Any]:
    """Estimate a bundle by kernel; gives its slowest, and where its schedules come from."""
    with tempfile.TemporaryDirectory(prefix="tvmattend-network-") as name:
        bundle = Path(name) / "bundle"
        built = build(model, target, output=bundle, tuning_records=records, observer=say)
        library = sum(file.stat().st_size for file in bundle.glob("*.so"))
        found = estimate_bundle(bundle, target.num_cores, progress=say).to_json()
    slowest = [part for part in found["kernels"] if part["name"] != RUNTIME][:TOP]
    return {
        "records": built.origins(),
        "library_bytes": library,
        "weight_bytes": 4 * parameters(lookup(model)),
        "cycles": found["cycles"],
        "slowest": slowest,
    }


def lines(data: dict[str, Any]) -> list[str]:
    """Give the slowest kernels as a table."""
    origins = ", ".join(f"{count} {origin}" for origin, count in data["records"].items() if count)
    library, weights = data["library_bytes"] / 1e6, data["weight_bytes"] / 1e6
    text = [
        f"schedules of tvmattend's kernels: {origins}",
        f"its library: {library:.2f} MB, {library - weights:.2f} more than the weights",
        "",
    ]
    text.append(f"{'kernel':<34}{'calls':>6}{'ms':>8}{'share':>7}{'FMA':>6}  bound")
    for part in data["slowest"]:
        share = 100 * part["cycles"] / data["cycles"]
        text.append(
            f"{part['name'][:33]:<34}{part['calls']:>6}{part['ms']:>8.2f}{share:>6.1f}%"
            f"{100 * part['fma_utilisation']:>5.0f}%  {part['bound']}"
        )
        text.append(f"    {', '.join(part['modules'])}")
    return text


@click.command()
@click.option("--model", default=DEFAULT, show_default=True)
@click.option("--threads", type=click.Choice(["1", "4"]), default="1", show_default=True)
@click.option("--against", default=EVERYTHING, show_default=True)
@click.option("--tuning-records", multiple=True, type=click.Path(path_type=Path))
@results_option(RESULTS)
def main(
    model: str, threads: str, against: str, tuning_records: tuple[Path, ...], results: Path
) -> None:
    """Compare, explain, and write both down."""
    target = parse_target("cortex-a72", int(threads))
    options = EstimateOptions(int(threads), parse_against(against), tuning_records)
    found = compare_estimates(ModelRequest(model), target, options, say)
    ours = kernels(model, target, tuning_records)
    text = [*found.lines(), "", *lines(ours)]
    print("\n".join(text))
    other = "" if model == DEFAULT else f"-{model}"
    stem = results / f"a72-network{other}-{threads}"
    kept = ("records", "library_bytes", "weight_bytes", "slowest")
    data = {**found.to_json(), **{key: ours[key] for key in kept}}
    write_entries(stem.with_suffix(".json"), data)
    command = f"$ python benchmarks/a72_network.py --threads {threads} --against {against}"
    write_text(stem.with_suffix(".txt"), "\n".join([command, *text]))


if __name__ == "__main__":
    with errors_told():
        main()
