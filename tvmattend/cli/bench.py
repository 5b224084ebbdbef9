# SPDX-License-Identifier: Apache-2.0
"""`tvmattend bench`: tvmattend beside what a user could pick instead, on this machine."""

import json
from pathlib import Path

import click

from tvmattend.bench.catalogue import AGAINST, parse_against
from tvmattend.models import DEFAULT


@click.command("bench")
@click.option("--model", default=DEFAULT, show_default=True, help="Name, module:factory or .pt2.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="State dict or .safetensors; else seeded."
)
@click.option("--threads", type=int, default=1, show_default=True, help="Of every runtime.")
@click.option(
    "--against", default=",".join(AGAINST), show_default=True, help="Runtimes, with commas between."
)
@click.option("--target", default="host", show_default=True, help="This machine, or a level of it.")
@click.option("--rounds", type=int, default=10, show_default=True, help="Turns of each runtime.")
@click.option(
    "--trials", type=int, default=0, help="Adds TVM's own pipeline, tuned with that many trials."
)
@click.option(
    "--tuning-records",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Records for tvmattend, before the usual places; may be repeated.",
)
@click.option("--no-records", is_flag=True, help="Build tvmattend's kernels without records.")
@click.option("--cpus", default="", help="Cores to bind to, e.g. 2,3; else the fastest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    weights: Path | None,
    threads: int,
    against: str,
    target: str,
    rounds: int,
    trials: int,
    tuning_records: tuple[Path, ...],
    no_records: bool,
    cpus: str,
    as_json: bool,
) -> None:
    """Time a network here, in tvmattend and in other runtimes.

    All get the same weights, input, threads and cores, in fp32. Outputs are compared with
    PyTorch's first; a runtime that computes something else is not timed. Then the runtimes take
    turns, each in a process of its own. Runtimes that are not installed are named and left out:
    `pip install "tvmattend[bench]"` brings them all.
    """
    from tvmattend.bench.comparison import Options, compare
    from tvmattend.frontend import ModelRequest
    from tvmattend.target import parse_target

    options = Options(
        threads=threads,
        against=parse_against(against),
        rounds=rounds,
        trials=trials,
        records=tuning_records,
        use_records=not no_records,
        cpus=_cpus(cpus),
    )
    comparison = compare(
        ModelRequest(model, weights),
        parse_target(target, threads),
        options,
        lambda text: click.echo(text, err=True),
    )
    for note in comparison.notes():
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=2))
    else:
        click.echo("\n".join(comparison.lines()))


def _cpus(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() for word in words):
        raise click.BadParameter(f"`{text}` is not a list of cores", param_hint="--cpus")
    return tuple(dict.fromkeys(int(word) for word in words))
