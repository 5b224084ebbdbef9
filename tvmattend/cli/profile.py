# SPDX-License-Identifier: Apache-2.0
"""`tvmattend profile`: where the time of a bundle goes, here or on a board."""

import json
from pathlib import Path

import click

from tvmattend.cli.board_options import board_given, key_option, tracker_option
from tvmattend.cli.bundle_options import RUNS, rpc_option, signature_option, timeout_option


@click.command("profile")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--threads", type=click.IntRange(1), help="Threads. [default: what the bundle was built for]"
)
@click.option("--runs", type=RUNS, default=50, show_default=True, help="Inferences to look into.")
@rpc_option("Profile on the board that serves there.")
@tracker_option
@key_option
@timeout_option
@click.option("--top", type=click.IntRange(min=1), help="Only the longest kernels, this many.")
@signature_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    threads: int | None,
    runs: int,
    rpc: str | None,
    rpc_tracker: str | None,
    rpc_key: str | None,
    timeout: float,
    top: int | None,
    require_signature: Path | None,
    as_json: bool,
) -> None:
    """Time every kernel of a bundle inside real inferences, here or on a board.

    For each: its time and share, the same call run again at once (`again`, everything in the
    cache; of a vm bundle, here), GFLOP/s, the share of the fused multiply-add peak and of
    whichever bounds it - compute or memory - both measured there, and the PyTorch module that it
    comes from. With several threads a standalone library's kernels last until all of them are
    done. On a board, bundles of the standalone format are timed.
    """
    from tvmattend.bench.profiling import profile

    board = board_given(rpc, rpc_tracker, rpc_key)
    found = profile(
        bundle,
        threads,
        runs,
        lambda text: click.echo(text, err=True),
        board,
        require_signature,
        timeout,
    )
    for note in found.notes():
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_json(top), indent=2))
    else:
        click.echo("\n".join(found.lines(top)))
