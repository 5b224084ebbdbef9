# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that load a bundle or reach a board."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tvmattend.cli.options import Seconds
from tvmattend.device.killable import ANSWER_SECONDS

# How often a network is run for a figure.
RUNS = click.IntRange(1, 1_000_000)

signature_option = click.option(
    "--require-signature",
    type=click.Path(path_type=Path),
    metavar="PUBKEY",
    help="Load nothing unless the owner of this Ed25519 key has signed the bundle.",
)


def rpc_option(purpose: str) -> Callable[[Any], Any]:
    """Make the option `--rpc`.

    Args:
        purpose: What the board is for, a sentence.
    """
    return click.option(
        "--rpc",
        metavar="HOST:PORT|ssh://USER@HOST",
        help=f"{purpose} ssh://USER@HOST[:SSH_PORT][/RPC_PORT] goes through a tunnel to a server "
        "on the board's loopback.",
    )


timeout_option = click.option(
    "--timeout",
    type=Seconds(1),
    default=ANSWER_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long a board may take for each answer: to be looked at, to load, to run. Timed runs "
    "have three times what the first run makes expect on top.",
)
