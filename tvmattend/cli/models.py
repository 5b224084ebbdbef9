# SPDX-License-Identifier: Apache-2.0
"""`tvmattend models`: the networks that ship, counted from their data (no torch)."""

import json

import click

from tvmattend.models import DEFAULT, REGISTRY, macs, parameters


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """List the networks that ship, with parameters, MACs and input size."""
    rows = [
        {
            "name": name,
            "parameters": parameters(architecture),
            "macs": macs(architecture),
            "input_shape": [1, 3, architecture.input_size, architecture.input_size],
            "classes": architecture.classes,
            "default": name == DEFAULT,
            "note": architecture.note,
        }
        for name, architecture in REGISTRY.items()
    ]
    if as_json:
        click.echo(json.dumps({"models": rows}, indent=2))
        return
    width = max(len(name) for name in REGISTRY)
    click.echo(f"{'name':{width}}  parameters      MACs    input  classes  note")
    for name, architecture in REGISTRY.items():
        size = f"{architecture.input_size}x{architecture.input_size}"
        click.echo(
            f"{name:{width}}  {parameters(architecture):>10,}  {macs(architecture) / 1e6:>6.2f} M"
            f"  {size:>7}  {architecture.classes:>7}  {architecture.note}"
        )
