# SPDX-License-Identifier: Apache-2.0
"""What a manifest must hold for its bundle to be loaded, and for its words to be printed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmattend.runtime.faults import UNPRINTABLE

_TENSOR_BYTES = 1 << 30  # what is larger is damage


def is_text(value: Any) -> bool:
    """Whether it is a string that can be printed: no controls, no halves of characters."""
    return isinstance(value, str) and not re.search(UNPRINTABLE, value)


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and abs(value) < 1e30


def _is_whole(value: Any, most: int = 1 << 20) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_file(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None
        and type(entry.get("size")) is int
    )


def _is_tensor(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return False
    if not all(is_text(entry.get(key)) for key in ("name", "dtype", "layout")):
        return False
    if not all(_is_whole(size, _TENSOR_BYTES) for size in entry["shape"]):
        return False
    try:
        dtype = np.dtype(entry["dtype"])
    except (TypeError, ValueError, SyntaxError):
        return False
    size = functools.reduce(int.__mul__, entry["shape"], dtype.itemsize)
    return dtype.kind in "fiub" and size <= _TENSOR_BYTES


def _is_recipe(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    if not all(_is_whole(value.get(key), 1 << 13) for key in ("resize", "crop")):
        return False
    mean, std = value.get("mean"), value.get("std")
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != 3 or len(std) != 3:
        return False
    numbers = [value.get("scale"), *mean, *std]
    return all(map(_is_number, numbers)) and all(std) and bool(value["crop"] <= value["resize"])


def _are(holds: Callable[[Any], bool], *names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(holds(value.get(name)) for name in names)


def _each(holds: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(holds, value))


# What this file, and who prints of a network, rests on; the host reads the rest as strictly.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "classes": lambda value: value is None or _is_whole(value),
    "cpu_flags": _each(is_text),
    "files": lambda value: isinstance(value, dict) and all(map(_is_file, value.values())),
    "format": lambda value: value in ("vm", "standalone"),
    "inputs": _each(_is_tensor, 1),
    "labels": lambda value: value is None or _each(is_text)(value),
    # Only that: lib/ holds TVM's own libraries, of which a second copy would end the process.
    "library": lambda value: is_text(value) and bool(re.fullmatch(r"(model|lib\w+)\.so", value)),
    "model": is_text,
    "outputs": _each(_is_tensor, 1),
    "preprocessing": _is_recipe,
    "reference": is_text,
    "target": _are(is_text, "mcpu", "mtriple"),
    "threads": _is_whole,
    "tolerance": lambda value: type(value) is float and 0 < value < 1,
    "versions": _are(is_text, "tvm", "tvm_ffi"),
}
