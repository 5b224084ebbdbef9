# SPDX-License-Identifier: Apache-2.0
"""Fields of a JSON object, read one by one: what is not as it should be is refused by its name."""

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from tvmattend.errors import BundleError

REMEDY = "copy or build the bundle again"

_Value = TypeVar("_Value")


def malformed(where: str, wanted: str) -> BundleError:
    """Give the error for a field that is not what it should be."""
    return BundleError(f"manifest.json: `{where}` is not {wanted}", REMEDY)


def only(data: Any, cls: type, where: str) -> None:
    """Refuse anything but an object with exactly the fields of a dataclass."""
    if not isinstance(data, dict):
        raise malformed(where, "an object")
    names = {item.name for item in fields(cls)}
    for name in sorted(names ^ set(data)):
        reason = "is missing" if name in names else "is unknown"
        raise BundleError(f"manifest.json: `{where}.{name}` {reason}", REMEDY)


def take(data: Any, name: str, kind: type[_Value] | tuple[type, ...], where: str) -> Any:
    """Give a field of an object, of one of some types; `bool` is no number."""
    if not isinstance(data, dict) or name not in data:
        raise BundleError(f"manifest.json: `{where}.{name}` is missing", REMEDY)
    value = data[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise malformed(f"{where}.{name}", names)
    return value


def one_of(data: Any, name: str, known: tuple[str, ...]) -> str:
    """Give a text that must be one of some."""
    value = str(take(data, name, str, "manifest"))
    if value not in known:
        raise malformed(name, " or ".join(known))
    return value


def whole(data: Any, name: str, where: str, least: int = 1) -> int:
    """Give a whole number."""
    value = take(data, name, int, where)
    if value < least:
        raise malformed(f"{where}.{name}", f"at least {least}")
    return int(value)


def optional(data: Any, name: str, read: Callable[[Any], _Value]) -> _Value | None:
    """Give what `read` makes of a field, or None for null."""
    return None if data[name] is None else read(data[name])


def words(value: Any, where: str) -> tuple[str, ...]:
    """Give a list of strings."""
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise malformed(where, "a list of strings")
    return tuple(value)


def number(value: Any, where: str) -> float:
    """Give a finite number; JSON's integers may be larger than any of Python's floats."""
    if type(value) not in {int, float} or not abs(value) <= sys.float_info.max:
        raise malformed(where, "a number")
    return float(value)


def numbers(data: Any, name: str, where: str) -> tuple[float, float, float]:
    """Give three finite numbers."""
    values = take(data, name, list, where)
    if len(values) != 3:
        raise malformed(f"{where}.{name}", "three numbers")
    red, green, blue = (number(value, f"{where}.{name}") for value in values)
    return red, green, blue


def each(data: Any, name: str, read: Callable[[Any, str], _Value]) -> tuple[_Value, ...]:
    """Give what `read` makes of each entry of a list."""
    entries = take(data, name, list, "manifest")
    return tuple(read(entry, f"{name}[{place}]") for place, entry in enumerate(entries))
