# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from tvmattend.frontend.request import ModelRequest
from tvmattend.models.registry import DEFAULT


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a network; the command receives them as `request: ModelRequest`.

    Nothing is checked here: the command calls `request.check()` beside its other checks.
    """

    @wraps(function)
    def command(
        *arguments: Any,
        model: str,
        weights: Path | None,
        num_classes: int | None,
        input_size: int | None,
        batch: int,
        seed: int,
        **options: Any,
    ) -> Any:
        request = ModelRequest(model, weights, num_classes, input_size, batch, seed)
        return function(*arguments, request=request, **options)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--model",
        default=DEFAULT,
        show_default=True,
        metavar="NAME|MODULE:FACTORY|FILE",
        help="A network of `tvmattend models`, a factory, a .pt2 or an .onnx file.",
    ),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A state dict (.pt, .pth, .bin) or .safetensors. [default: seeded weights]",
    ),
    click.option(
        "--num-classes",
        type=click.IntRange(1),
        metavar="N",
        help="Classes of the head. [default: the network's]",
    ),
    click.option(
        "--input-size",
        type=click.IntRange(1),
        metavar="PIXELS",
        help="Height and width of the input. [default: the network's]",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Images in a batch.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        metavar="N",
        help="Of whatever is drawn at random, such as weights that are not loaded.",
    ),
)
