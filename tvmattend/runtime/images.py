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
    if hasattr(image, "convert"):
        image = np.asarray(image.convert("RGB"))
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
        from PIL import Image, ImageOps
    except ImportError as error:
        hint = "pip install pillow, or pass an array"
        raise ToolMissingError(f"Pillow does not import: {error}", hint) from error
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        hint = "give a photograph (JPEG, PNG), or pass an array"
        raise InputError(f"{path} does not open as an image: {error}", hint) from error


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
