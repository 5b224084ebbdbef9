# SPDX-License-Identifier: Apache-2.0
"""`tvmattend models`: the networks that ship, counted from their data (no torch)."""

import json

import click

from tvmattend.models import DEFAULT, REGISTRY, macs, parameters
from tvmattend.text import table


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
    texts = [
        (
            name,
            f"{parameters(architecture):,}",
            f"{macs(architecture) / 1e6:.2f} M",
            f"{architecture.input_size}x{architecture.input_size}",
            str(architecture.classes),
            architecture.note,
        )
        for name, architecture in REGISTRY.items()
    ]
    header = ("name", "parameters", "MACs", "input", "classes", "note")
    click.echo("\n".join(table(header, texts, left=(0, 5))))
