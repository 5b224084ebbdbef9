# SPDX-License-Identifier: Apache-2.0
"""`tvmattend device`: serve a board over TVM RPC until told to stop."""

import json
import shlex

import click

from tvmattend.errors import BoardUnreachableError, PortError

_OPEN_PORT = (
    "{host} is not loopback: TVM RPC has no password and no encryption, and whoever can "
    "connect to port {port} runs code as you"
)
_USE_SSH = (
    "serve on loopback (leave --host out) and use `--rpc ssh://USER@HOST` there; or, in a network "
    "that you trust, add --insecure"
)
_UNSEEN_BOARD = (
    "warning: the tracker will give out {host}, where only this machine reaches the board; "
    "add --host 0.0.0.0 --insecure to serve others"
)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option(
    "--insecure",
    is_flag=True,
    help="Serve on an address that others reach, who then can run code as you.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9090,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option(
    "--emulate",
    type=click.Choice(["cortex-a72"]),
    help="Serve an emulated board instead of this machine (needs qemu-user; prepared once).",
)
@click.option("--tracker", metavar="HOST:PORT", help="Register with a TVM RPC tracker.")
@click.option("--key", "--rpc-key", "key", metavar="NAME", help="Name to register under.")
@click.option("--verbose", is_flag=True, help="Log every session on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
def command(
    host: str,
    insecure: bool,
    port: int,
    emulate: str | None,
    tracker: str | None,
    key: str | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Serve TVM RPC on this machine, or as an emulated Cortex-A72, until Ctrl-C.

    What is printed are the options of tune, run, validate and profile that reach it. One client is
    served at a time.
    """
    if (tracker is None) != (key is None):
        raise click.UsageError("--tracker and --key go together")

    from tvmattend.device.endpoint import check_tracker, tracker_endpoint
    from tvmattend.device.process import ServerOptions, is_loopback, serve_here

    if not host.strip():
        raise click.BadParameter("is empty; leave it out for loopback", param_hint="--host")
    if not is_loopback(host) and not insecure:
        raise PortError(_OPEN_PORT.format(host=host, port=port), _USE_SSH)
    entry = tracker_endpoint(tracker, key) if tracker is not None and key is not None else None
    if entry is not None:
        check_tracker(entry)
    if not is_loopback(host):
        click.echo(f"warning: {_OPEN_PORT.format(host=host, port=port)}", err=True)
    elif entry is not None and not is_loopback(entry.host):
        click.echo(_UNSEEN_BOARD.format(host=host), err=True)
    options = ServerOptions(host, port, entry, verbose=verbose)
    if emulate is None:
        name, server = "this machine", serve_here(options)
    else:
        from tvmattend.device.emulated import prepare

        board = prepare(lambda step: click.echo(f"preparing the emulated board: {step}", err=True))
        name, server = f"an emulated {emulate}", board.start(options)
    with server:
        try:
            if as_json:
                facts = {"host": server.host, "port": server.port, "rpc": server.address}
                facts |= {"emulated": emulate is not None, "core": emulate}
                click.echo(json.dumps(facts))
            else:
                use = f"--rpc {server.address}"
                if entry is not None:
                    use = f"--rpc-tracker {entry.address} --key {shlex.quote(entry.key)}"
                click.echo(f"serving {name} on {server.address}")
                click.echo(f"use it with `{use}`; Ctrl-C stops it", err=True)
            code = server.wait()
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            return  # what a server is stopped with is no failure
    raise BoardUnreachableError(
        f"the server on {server.address} ended by itself with {code}",
        "start it again; --verbose shows its sessions",
    )
