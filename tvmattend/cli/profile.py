# SPDX-License-Identifier: Apache-2.0
"""`tvmattend profile`: where the time of a bundle goes on this machine."""

import json
from pathlib import Path

import click


@click.command("profile")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--threads", type=click.IntRange(1), help="Threads of the kernels; else the bundle's own."
)
@click.option(
    "--runs", type=click.IntRange(1), default=50, show_default=True, help="Inferences to look into."
)
@click.option("--top", type=click.IntRange(min=1), help="Only the longest kernels, this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: Path, threads: int | None, runs: int, top: int | None, as_json: bool) -> None:
    """Time every kernel of a bundle inside real inferences.

    For each: its time and share, the same call run again at once (`again`, everything in the
    cache), GFLOP/s, the share of the fused multiply-add peak and of whichever bounds it - compute
    or memory - both measured here, and the PyTorch module that it comes from.
    """
    from tvmattend.bench.profiling import profile

    found = profile(bundle, threads, runs, lambda text: click.echo(text, err=True))
    for note in found.notes():
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        click.echo("\n".join(found.lines(top)))
