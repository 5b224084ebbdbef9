# SPDX-License-Identifier: Apache-2.0
"""A bundle that several commands open: here or on a board, and what they say of where it runs."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmattend.device.killable import ANSWER_SECONDS

if TYPE_CHECKING:
    from tvmattend.device.endpoint import Endpoint
    from tvmattend.runtime import Network


def open_bundle(
    bundle: Path,
    board: "Endpoint | str | None",
    threads: int | None,
    require_signature: Path | None = None,
    timeout: float = ANSWER_SECONDS,
) -> AbstractContextManager["Network"]:
    """Give a context with the network: in this process, or on a board.

    Raises:
        TvmattendError: See `load` and `load_remote`.
    """
    if board is None:
        from tvmattend.runtime import load

        return nullcontext(load(bundle, threads, require_signature))
    from tvmattend.runtime.remote import load_remote

    return load_remote(bundle, board, threads, require_signature, timeout)


def describe(net: "Network", bundle: Path) -> dict[str, Any]:
    """Say which network ran where, for `--json`; notes of the board go to stderr."""
    board = getattr(net, "board", None)
    for note in board.notes if board else ():
        click.echo(f"note: {note}", err=True)
    return {
        "bundle": str(bundle),
        "model": net.manifest["model"],
        "target": net.manifest["target"],
        "board": board.to_json() if board else None,
        "threads": net.threads,
    }


def place_of(report: dict[str, Any]) -> str:
    """Say where a network ran, for a person."""
    board = report["board"]
    if board is None:
        return "here"
    return f"on {board['endpoint']}" + (", EMULATED" if board["emulated"] else "")
