# SPDX-License-Identifier: Apache-2.0
"""Damage by dice: the same seed and number give the same damage, so a find can be looked at."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

# Values that readers stumble over; those that name files are put to them by `nasty`.
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.5, 1e-4, 1e308,
    float("nan"), float("inf"), "", " ", "x", "x" * 5000, "a\0b", "\ud800", "\x1b[31m", "\n", ".",
    "..", "/", "//", "./model.so", "model.so", "float32", "float64", "object", "S5", "int8", "V8",
    "O", "(2,3)f4", "f4,f4", "vm", "standalone", "README.md", "golden.npz", "[]", [], {}, [[]],
    [None], [1, 2, 3], {"x": 1}, [0], [-1], [2**40], ["a"], {"sha256": "0" * 64, "size": 0},
)  # fmt: skip


def nasty(dice: random.Random, paths: Sequence[str] = ()) -> Any:
    """Give one of the values that readers stumble over."""
    return copy.deepcopy(dice.choice((*_VALUES, *paths, *paths)))


def mutate_json(dice: random.Random, data: Any, paths: Sequence[str] = ()) -> Any:
    """Change one to three places of a JSON value, wherever they are in it."""
    changed = copy.deepcopy(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        changed = _mutate_once(dice, changed, paths)
    return changed


def _mutate_once(dice: random.Random, data: Any, paths: Sequence[str]) -> Any:
    places = list(_places(data))
    if not places:
        return nasty(dice, paths)
    parent, key = dice.choice(places)
    act = dice.randrange(10)
    if act == 0:
        del parent[key]
    elif act == 1 and isinstance(parent, dict):
        parent[str(nasty(dice, paths))] = parent.pop(key)
    elif act == 2 and isinstance(parent, dict):
        parent[dice.choice(["extra", *map(str, paths), str(key).upper()])] = nasty(dice, paths)
    elif act == 3:
        other, there = dice.choice(places)
        parent[key] = copy.deepcopy(other[there])
    elif act == 4:
        parent[key] = [parent[key]]
    elif act == 5 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = dice.choice((-parent[key], parent[key] + 1, parent[key] * 1000))
    elif act == 6 and isinstance(parent[key], str):
        text = parent[key]
        place = dice.randrange(len(text) + 1)
        parent[key] = text[:place] + dice.choice("\0\n /.\\é\ud800'\"%{") + text[place:]
    else:
        parent[key] = nasty(dice, paths)
    return data


def _places(data: Any) -> Any:
    """Every (container, key) in a JSON value."""
    pending = [data]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            yield node, key
            if isinstance(node[key], (dict, list)):
                pending.append(node[key])


def mutate_bytes(dice: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or replace some bytes."""
    result = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        place = dice.randrange(len(result) + 1)
        act = dice.randrange(7)
        if act == 0:
            del result[place:]
        elif act == 1:
            del result[place : place + dice.randrange(1, 50)]
        elif act == 2:
            result[place:place] = dice.randbytes(dice.randrange(1, 20))
        elif act == 3:
            result[place:place] = result[place : place + dice.randrange(1, 200)]
        elif act == 4:
            result[place:place] = dice.choice((b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"\xff"))
        elif act == 5 and place < len(result):
            result[place] = dice.choice(b'{}[]",:0\0\n-e.')
        elif place < len(result):
            result[place] ^= 1 << dice.randrange(8)
    return bytes(result)


def mutate_text(dice: random.Random, data: Any, paths: Sequence[str] = ()) -> bytes:
    """Give a JSON value as text, damaged as a value, as text, or both."""
    act = dice.randrange(4)
    changed = mutate_json(dice, data, paths) if act else data
    text = json.dumps(changed, indent=1).encode()
    return mutate_bytes(dice, text) if act in {0, 3} else text
