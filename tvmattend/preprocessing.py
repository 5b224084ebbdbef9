# SPDX-License-Identifier: Apache-2.0
"""From a photograph to a network's input, as data: an importer says it, a bundle carries it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tvmattend.errors import InputError

Triple = tuple[float, float, float]

# Of ImageNet's photographs, with pixels from 0 to 1 (torchvision's models).
MEAN: Triple = (0.485, 0.456, 0.406)
STD: Triple = (0.229, 0.224, 0.225)


def usual_resize(crop: int) -> int:
    """Shorter side that a middle is cut out of: 256 for 224 pixels, as torchvision evaluates."""
    return round(crop / 0.875)


class Tensor(Protocol):
    """An input: its shape and dtype."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, cut out the middle, scale, normalise.

    `x = (pixel * scale - mean) / std` a channel, with pixels 0-255.

    Attributes:
        resize: Pixels of the shorter side.
        crop: Height and width of the middle that is cut out, in pixels.
        mean: A channel.
        std: A channel.
        scale: Of a pixel.
        colour: Order of the channels.
        interpolation: Of resizing.
    """

    resize: int
    crop: int
    mean: Triple = MEAN
    std: Triple = STD
    scale: float = 1 / 255
    colour: str = "RGB"
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Photographs:
    """What somebody says of the photographs that a network was trained with.

    Attributes:
        mean: Of red, green and blue, with pixels from 0 to 1.
        std: Likewise.
        resize: Pixels of the shorter side before the middle is cut out; None for the usual 256 of
            224, in proportion.
    """

    mean: Triple = MEAN
    std: Triple = STD
    resize: int | None = None

    def recipe(self, inputs: Sequence[Tensor]) -> Preprocessing:
        """Give the recipe for a network's input.

        Args:
            inputs: Of the network.

        Raises:
            InputError: It takes no square images, or the middle is larger than the whole, or a
                deviation is 0.
        """
        shape, dtype = inputs[0].shape, inputs[0].dtype
        square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]
        if len(inputs) != 1 or not square or dtype != "float32":
            found = ", ".join(f"{each.dtype} {list(each.shape)}" for each in inputs)
            raise InputError(
                f"a photograph becomes float32 [1, 3, size, size]; the network takes {found}",
                "leave out --mean, --std and --resize; inputs are arrays then",
            )
        crop = shape[2]
        resize = usual_resize(crop) if self.resize is None else self.resize
        if 0.0 in self.std:
            raise InputError("--std 0 would divide by zero", "give the deviations of the pixels")
        if resize < crop:
            raise InputError(
                f"--resize {resize} is less than the {crop} pixels that the network takes",
                f"give {crop} or more",
            )
        return Preprocessing(resize, crop, self.mean, self.std)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the names of classes, one a line.

    Raises:
        InputError: It is no such file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or error
        raise InputError(
            f"labels: {path}: {told}", "give a text file in UTF-8, one class a line"
        ) from error
    labels = tuple(line.strip() for line in lines)
    if not labels or not all(label.isprintable() and label for label in labels):
        raise InputError(f"labels: {path} has an empty or unprintable line", "one class a line")
    return labels
