# SPDX-License-Identifier: Apache-2.0
"""`tvmattend boards`: who is at a tracker, what it is, how it fares."""

import json
from typing import TYPE_CHECKING

import click

from tvmattend.cli.board_options import key_option, tracker_in_environment
from tvmattend.errors import NoFreeBoardError
from tvmattend.text import table

if TYPE_CHECKING:
    from tvmattend.device.asking import FleetBoard

_HEADER = ("key", "address", "core", "clock", "governor", "temperature", "state")


@click.command()
@click.option(
    "--rpc-tracker",
    "--tracker",
    "tracker",
    metavar="HOST:PORT",
    help="The tracker. [default: $TVM_TRACKER_HOST:$TVM_TRACKER_PORT]",
)
@key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(tracker: str | None, rpc_key: str | None, as_json: bool) -> None:
    """List the boards of a tracker.

    Boards that run `tvmattend device` tell all of it without being disturbed; of one with TVM's
    own server only the address is known, and whether any of its key is free.
    """
    from tvmattend.device.asking import boards_at
    from tvmattend.device.endpoint import TRACKER_PORT, parse_endpoint, tracker_endpoint

    tracker = tracker or tracker_in_environment()
    if tracker is None:
        raise click.UsageError("give --rpc-tracker HOST:PORT or set TVM_TRACKER_HOST")
    if rpc_key is None:
        endpoint = parse_endpoint(tracker, TRACKER_PORT)
    else:
        endpoint = tracker_endpoint(tracker, rpc_key)
    boards = boards_at(endpoint)
    if as_json:
        found = [board.to_json() for board in boards]
        click.echo(json.dumps({"tracker": endpoint.address, "boards": found}, indent=2))
        return
    if not boards:
        which = f"no board `{rpc_key}`" if rpc_key else "no board"
        raise NoFreeBoardError(
            f"tracker {endpoint.address} has {which}",
            "on the board run `tvmattend device --tracker HOST:PORT --key NAME`",
        )
    rows = [_row(board) for board in boards]
    click.echo("\n".join(table(_HEADER, rows, left=(0, 1, 2, 4, 6))))


def _row(board: "FleetBoard") -> tuple[str, ...]:
    told, now = board.status, board.status.conditions
    state = {True: "busy", False: "free", None: "-"}[told.busy]
    if not board.reachable:
        state = "unreachable"
    elif told.silent and not told.busy:  # a busy server of TVM's own says nothing either
        state = "no answer"
    elif now.throttled:
        state += f" (throttled: {now.throttled})"
    core = told.core or told.model
    return (
        board.key,
        board.address,
        f"{core} (emulated)" if told.emulated else core or "-",
        "-" if now.clock_mhz is None else f"{now.clock_mhz:.0f} MHz",
        now.governor or "-",
        "-" if now.temperature_c is None else f"{now.temperature_c:.1f} C",
        state,
    )
