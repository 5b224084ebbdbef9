# SPDX-License-Identifier: Apache-2.0
"""`tvmattend validate`: a bundle's golden vectors against the reference, here or on a board."""

import json
import math
from pathlib import Path

import click

from tvmattend.cli.board_options import board_given, key_option, tracker_option
from tvmattend.cli.bundle_options import rpc_option, signature_option, timeout_option
from tvmattend.cli.bundles import describe, open_bundle, place_of
from tvmattend.errors import ValidationError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@rpc_option("Run on the board that serves there.")
@tracker_option
@key_option
@timeout_option
@click.option(
    "--threads", type=click.IntRange(1), help="Threads. [default: what the bundle was built for]"
)
@signature_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    rpc: str | None,
    rpc_tracker: str | None,
    rpc_key: str | None,
    timeout: float,
    threads: int | None,
    require_signature: Path | None,
    as_json: bool,
) -> None:
    """Compare BUNDLE's outputs with the reference that ships in it, here or on a board.

    The error of a golden vector is max|y - ref| / max|ref|; one above the bundle's tolerance
    is a failure.
    """
    board = board_given(rpc, rpc_tracker, rpc_key)
    with open_bundle(bundle, board, threads, require_signature, timeout) as net:
        report = describe(net, bundle)
        tolerance = float(net.manifest["tolerance"])
        errors = net.golden_errors()
    failed = [number for number, error in enumerate(errors) if not error <= tolerance]
    report |= {
        "reference": net.manifest["reference"],
        "tolerance": tolerance,
        # JSON has no infinity; null says that the outputs could not be compared.
        "errors": [error if math.isfinite(error) else None for error in errors],
        "passed": not failed,
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        for number, error in enumerate(errors):
            verdict = "FAILED" if number in failed else "ok"
            click.echo(f"vector {number}: max relative error {error:.2e}  {verdict}")
    if failed:
        raise ValidationError(
            f"{len(failed)} of {len(errors)} golden vectors of {bundle} differ from "
            f"{report['reference']} by more than {tolerance:.0e}",
            "the library does not compute this network there: build it again, and report it",
        )
    if not as_json:
        click.echo(
            f"passed: {len(errors)} vectors within {tolerance:.0e} of {report['reference']} "
            f"({place_of(report)})"
        )
