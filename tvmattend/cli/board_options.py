# SPDX-License-Identifier: Apache-2.0
"""Which board is meant: a server, a tracker with a key, or neither."""

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tvmattend.device.endpoint import Endpoint

tracker_option = click.option(
    "--rpc-tracker", metavar="HOST:PORT", help="Use a board of this tracker that has the key."
)
key_option = click.option(
    "--rpc-key",
    "--key",
    "rpc_key",
    metavar="NAME",
    help="The tracker's name for the boards. [default: $TVM_TRACKER_KEY]",
)


def board_given(rpc: str | None, tracker: str | None, key: str | None) -> "Endpoint | str | None":
    """What `--rpc`, `--rpc-tracker` and `--rpc-key` name; None for this machine.

    Returns:
        What `--rpc` says as it is (it may need a tunnel), or the tracker and its key.
    """
    from tvmattend.device.endpoint import tracker_endpoint

    if rpc is not None:
        if tracker is not None or key is not None:
            raise click.UsageError(
                "--rpc names one board; --rpc-tracker and --rpc-key do not go with it"
            )
        return rpc
    if tracker is None:
        if key is not None:
            raise click.UsageError("--rpc-key goes with --rpc-tracker (or TVM_TRACKER_HOST)")
        return None
    key = os.environ.get("TVM_TRACKER_KEY") if key is None else key
    if key is None:
        raise click.UsageError(
            f"the tracker {tracker} needs a key: give --rpc-key or set TVM_TRACKER_KEY"
        )
    return tracker_endpoint(tracker, key)


def board_endpoint(
    rpc: str | None, tracker: str | None, key: str | None, environment: bool
) -> "Endpoint | None":
    """The same, reached: where `--rpc` needs a tunnel, that stands until the command ends.

    Args:
        rpc: `--rpc`.
        tracker: `--rpc-tracker`.
        key: `--rpc-key`.
        environment: Whether TVM's variables stand in where neither is given.
    """
    from tvmattend.device.tunnel import reached

    if rpc is None and tracker is None and environment:
        tracker = tracker_in_environment()
    given = board_given(rpc, tracker, key)
    if isinstance(given, str):
        return click.get_current_context().with_resource(reached(given))
    return given


def tracker_in_environment() -> str | None:
    """The tracker that TVM's own variables name, as `--rpc-tracker` takes it."""
    host, port = os.environ.get("TVM_TRACKER_HOST"), os.environ.get("TVM_TRACKER_PORT")
    if not host:
        return None
    return f"{host}:{port}" if port else host
