# SPDX-License-Identifier: Apache-2.0
"""Tensors of a network: described, allocated where kernels can use them, checked, compared."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from tvmattend.runtime.faults import InputError


class TensorSpec(NamedTuple):
    """One input or output of the network: e.g. `("x", (1, 3, 224, 224), "float32", "NCHW")`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str


def tensor_specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Read the manifest's `inputs` or `outputs`."""
    return tuple(TensorSpec(e["name"], tuple(e["shape"]), e["dtype"], e["layout"]) for e in entries)


def aligned(spec: TensorSpec) -> np.ndarray:
    """Make an array at a multiple of 64 bytes: kernels crash on numpy's own multiples of 16."""
    size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(spec.dtype).reshape(spec.shape)


def checked(spec: TensorSpec, array: Any, photo: bool = False) -> np.ndarray:
    """Refuse what is not an array of that shape and dtype, and say what it seems to be.

    Args:
        spec: What it should be.
        array: What it is.
        photo: Whether the network can make this input from an image.
    """
    wanted = f"input `{spec.name}` is {spec.dtype}{list(spec.shape)}, {spec.layout}"
    if not isinstance(array, np.ndarray):
        raise InputError(f"{wanted}; got a {type(array).__name__}", "pass a numpy array")
    message = f"{wanted}; got {array.dtype}{list(array.shape)}"
    if photo and array.dtype == np.uint8:
        raise InputError(message, "for images: net.classify(image), of uint8 [height, width, 3]")
    if array.shape != spec.shape:
        nhwc: tuple[int, ...] = ()
        if spec.layout == "NCHW":
            batch, channels, *image = spec.shape
            nhwc = (batch, *image, channels)
        hints = {
            spec.shape[1:]: "the batch axis is missing: pass x[None]",
            nhwc: "that is NHWC: pass x.transpose(0, 3, 1, 2)",
            nhwc[1:]: "that is one image, HWC: pass x.transpose(2, 0, 1)[None]",
        }
        hint = hints.get(array.shape) if array.shape else None
        raise InputError(message, hint or "the network is compiled for this one shape")
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(message, f'pass x.astype("{spec.dtype}")')
    return array


def relative_error(result: np.ndarray, reference: np.ndarray) -> float:
    """Give max|result - reference| / max|reference|; infinity if that is not a number."""
    if result.shape != reference.shape:
        return float("inf")
    exact = reference.astype(np.float64)
    scale = max(float(np.abs(exact).max()), sys.float_info.min)
    error = float(np.abs(result.astype(np.float64) - exact).max()) / scale
    return float("inf") if np.isnan(error) else error
