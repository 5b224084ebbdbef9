# SPDX-License-Identifier: Apache-2.0
"""`tvmattend bench`: tvmattend beside what a user could pick instead, on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvmattend.bench.catalogue import AGAINST, OURS, parse_against
from tvmattend.cli.options import input_size_option, num_classes_option, seed_option
from tvmattend.errors import BenchmarkError
from tvmattend.models import DEFAULT

if TYPE_CHECKING:
    from tvmattend.frontend import ModelRequest

_DEFAULT = click.core.ParameterSource.DEFAULT


@click.command("bench")
@click.option("--model", default=DEFAULT, show_default=True, help="Name, module:factory or .pt2.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="State dict or .safetensors; else seeded."
)
@num_classes_option
@input_size_option
@seed_option
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Of every runtime."
)
@click.option("--against", help="Runtimes, with commas between.  [default: all that there are]")
@click.option("--target", default="host", show_default=True, help="This machine, or a level of it.")
@click.option(
    "--estimate",
    "is_estimate",
    is_flag=True,
    help="Estimate instead of timing, for --target cortex-a72: under QEMU, no board needed.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=10, show_default=True, help="Turns of each runtime."
)
@click.option(
    "--trials",
    type=click.IntRange(0),
    default=0,
    help="Adds TVM's own pipeline, tuned with that many trials.",
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
@click.pass_context
def command(
    context: click.Context,
    model: str,
    weights: Path | None,
    num_classes: int | None,
    input_size: int | None,
    seed: int,
    threads: int,
    against: str | None,
    target: str,
    is_estimate: bool,
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
    `pip install -e ".[bench]"` where tvmattend was cloned brings all but litert, whose packages
    exclude others'.

    With --estimate, each runtime's aarch64 library runs one inference under QEMU, and what it
    executed goes through the model of `tvmattend estimate`. Converters run here.
    """
    from tvmattend.bench.comparison import Options, compare
    from tvmattend.frontend import ModelRequest
    from tvmattend.target import parse_target

    request = ModelRequest(model, weights, num_classes, input_size, seed=seed)
    if no_records and tuning_records:
        raise click.UsageError("--no-records asks for none, --tuning-records names some")
    if is_estimate:
        timing = ("rounds", "trials", "cpus")
        if any(context.get_parameter_source(name) != _DEFAULT for name in timing):
            raise click.UsageError("--rounds, --trials and --cpus do not go with --estimate")
        _estimate(request, target, threads, against, tuning_records, no_records, as_json)
        return
    options = Options(
        threads=threads,
        against=AGAINST if against is None else parse_against(against),
        rounds=rounds,
        trials=trials,
        records=tuning_records,
        use_records=not no_records,
        cpus=_cpus(cpus),
    )
    comparison = compare(
        request,
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
    _require_named(against, [result.runtime for result in comparison.results])


def _require_named(against: str | None, runtimes: list[str]) -> None:
    """Fail where some runtimes were named and none of them could be compared with.

    Raises:
        BenchmarkError: The table, which says why of each, has been printed.
    """
    if against is not None and set(runtimes) <= {OURS}:
        raise BenchmarkError(
            f"nothing of --against {against} could be compared with", "the table says why"
        )


def _estimate(
    request: "ModelRequest",
    target: str,
    threads: int,
    against: str | None,
    records: tuple[Path, ...],
    no_records: bool,
    as_json: bool,
) -> None:
    from tvmattend.bench import estimated
    from tvmattend.target import parse_target

    options = estimated.EstimateOptions(
        threads,
        estimated.AGAINST if against is None else parse_against(against, estimated.AGAINST),
        records,
        not no_records,
    )
    found = estimated.compare_estimates(
        request, parse_target(target, threads), options, lambda text: click.echo(text, err=True)
    )
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(found.lines()))
    _require_named(against, [result.runtime for result in found.results])


def _cpus(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise click.BadParameter(f"`{text}` is not a list of cores", param_hint="--cpus")
    return tuple(dict.fromkeys(int(word) for word in words))
