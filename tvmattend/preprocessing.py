# SPDX-License-Identifier: Apache-2.0
"""From a photograph to a network's input, as data: an importer says it, a bundle carries it."""

from dataclasses import dataclass


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
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    colour: str = "RGB"
    interpolation: str = "bilinear"
