# SPDX-License-Identifier: Apache-2.0
"""From a photograph to a network's input."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.runtime.faults import InputError, ToolMissingError


def preprocess(image: Any, recipe: dict[str, Any]) -> np.ndarray:
    """Make a float32 array [1, 3, height, width] from an image.

    The shorter side is resized to `resize` (bilinear, antialiased: as Pillow and torchvision do),
    the middle `crop` x `crop` is cut out, then (pixel * `scale` - `mean`) / `std`.

    Args:
        image: A path, a PIL image, or a uint8 array [height, width, 3] of RGB.
        recipe: The manifest's `preprocessing`.
    """
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    short, crop = recipe["resize"], recipe["crop"]
    strip = _resample(pixels, max(short, short * height // width), crop)
    square = _resample(strip.swapaxes(0, 1), max(short, short * width // height), crop)
    scaled = square.transpose(2, 1, 0) * recipe["scale"]
    mean, std = (np.reshape(recipe[key], (3, 1, 1)) for key in ("mean", "std"))
    return np.ascontiguousarray(((scaled - mean) / std)[None], np.float32)


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, (str, os.PathLike)):
        image = _open_image(Path(image))
    elif hasattr(image, "convert"):
        image = _upright_rgb(image)
    if not isinstance(image, np.ndarray):
        raise InputError(f"a {type(image).__name__} is not an image", "pass a path or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"an image is uint8 [height, width, 3]; got {image.dtype}{list(image.shape)}",
            "if it is normalised already: net(x)",
        )
    return image


def _open_image(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        hint = "pip install pillow, or pass an array"
        raise ToolMissingError(f"Pillow does not import: {error}", hint) from error
    try:
        with Image.open(path) as opened:
            return _upright_rgb(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        hint = "give a photograph (JPEG, PNG), or pass an array"
        raise InputError(f"{path} does not open as an image: {error}", hint) from error


def _upright_rgb(image: Any) -> np.ndarray:
    """Make a uint8 array of a PIL image; its `convert` would clip what has more than 8 bits."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    # Older Pillows open the 16 bits of a PNG as 32.
    if upright.mode.startswith("I;16") or (upright.mode, image.format) == ("I", "PNG"):
        grey = np.rint(np.asarray(upright) / 257).astype(np.uint8)
        return np.stack([grey] * 3, axis=2)
    if upright.mode in ("I", "F"):
        raise InputError(
            f"an image of mode {upright.mode} does not say which of its values is white",
            "scale it to 0..255, and pass it as a uint8 array [height, width, 3]",
        )
    return np.asarray(upright.convert("RGB"))


def _resample(image: np.ndarray, size: int, crop: int) -> np.ndarray:
    """Resize axis 0 to `size` and give the middle `crop` rows of it, as float32.

    The filter is a triangle, as wide as the reduction lest it alias.
    """
    scale = len(image) / size
    support = max(scale, 1.0)
    offset = round((size - crop) / 2)
    result = np.empty((crop, *image.shape[1:]), np.float32)
    for row in range(crop):
        centre = (offset + row + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        taps = image[first : int(centre + support + 0.5)]
        distance = np.abs(np.arange(first, first + len(taps)) + 0.5 - centre)
        weights = np.maximum(1 - distance / support, 0)
        result[row] = np.tensordot((weights / weights.sum()).astype(np.float32), taps, 1)
    return result
