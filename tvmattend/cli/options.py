# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from tvmattend.device.serving.wire import LONGEST_SECONDS
from tvmattend.frontend.request import MOST, ModelRequest
from tvmattend.models.registry import DEFAULT

# As many cores as no machine has, and what a generator of random numbers takes.
THREADS = click.IntRange(1, 1024)
THREADS_DEFAULT = "[default: the target's num-cores, else 4; for this machine its cores, up to 64]"
_EXTENTS = click.IntRange(1, MOST)
_SEEDS = click.IntRange(0, 2**63 - 1)


class Seconds(click.FloatRange):
    """A time to wait, up to a week; a `FloatRange` lets NaN pass, and infinity never ends.

    Args:
        least: The shortest.
    """

    def __init__(self, least: float) -> None:
        super().__init__(least, LONGEST_SECONDS)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the number.

        Raises:
            click.BadParameter: It is none, or out of range.
        """
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


def three_numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, float, float] | None:
    """Read three numbers with commas between, or one for all three; a callback of options.

    Raises:
        click.BadParameter: They are none, not three, or not finite.
    """
    if value is None:
        return None
    try:
        numbers = [float(word) for word in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in {1, 3} or not all(map(math.isfinite, numbers)):
        told = f"`{value}` is not three numbers, as in 0.485,0.456,0.406."
        raise click.BadParameter(told, context, parameter)
    first, second, third = numbers * (3 // len(numbers))
    return first, second, third


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
        batch: int | None,
        seed: int,
        **options: Any,
    ) -> Any:
        request = ModelRequest(model, weights, num_classes, input_size, batch, seed)
        return function(*arguments, request=request, **options)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


num_classes_option = click.option(
    "--num-classes",
    type=_EXTENTS,
    metavar="N",
    help="Classes of the head. [default: the network's]",
)
input_size_option = click.option(
    "--input-size",
    type=_EXTENTS,
    metavar="PIXELS",
    help="Height and width of the input. [default: the network's]",
)
seed_option = click.option(
    "--seed",
    type=_SEEDS,
    default=0,
    show_default=True,
    metavar="N",
    help="Of whatever is drawn at random, such as weights that are not loaded.",
)
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
        help="A state dict (.pt, .pth, .bin, .ckpt) or .safetensors. [default: seeded weights]",
    ),
    num_classes_option,
    input_size_option,
    click.option(
        "--batch",
        type=_EXTENTS,
        metavar="N",
        help="Images in a batch. [default: what a file fixes, else 1]",
    ),
    seed_option,
)
