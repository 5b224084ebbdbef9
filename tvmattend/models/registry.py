# SPDX-License-Identifier: Apache-2.0
"""The networks that ship, as data."""

import difflib
from collections.abc import Mapping
from dataclasses import replace

from tvmattend.errors import ModelError
from tvmattend.models.architecture import CLASSICAL, Architecture, Stage


def _attendnext(name: str, note: str, depths: tuple[int, int, int, int]) -> Architecture:
    # Widths of arXiv 2311.11656's public layer list: 8, 10, 21, 44 and 93 channels a column.
    stages = (
        Stage("basic", 40, 40, depths[0], downsample=False),
        Stage("basic", 84, 84, depths[1]),
        Stage("bottleneck", 176, 352, depths[2]),
        Stage("bottleneck", 372, 744, depths[3]),
    )
    return Architecture(name, note, stem=32, stages=stages)


# Two, three, five, seven and eleven channels a column: no vector divides them, as in the real ones.
_TINY = Architecture(
    "attendnext_tiny",
    "for tests: a forward takes milliseconds",
    stem=8,
    stages=(
        Stage("basic", 12, 12, 1, downsample=False),
        Stage("basic", 20, 20, 1),
        Stage("bottleneck", 28, 56, 1),
        Stage("bottleneck", 44, 88, 1),
    ),
    input_size=64,
    classes=10,
)

REGISTRY: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        # Depths are inferred: the paper bounds the size to 3.92-3.94 M parameters, and of the
        # depths inside that band these need the fewest MACs.
        _attendnext("attendnext", "size-matched to arXiv 2208.06980; the default", (3, 2, 2, 3)),
        _attendnext("attendnext_xs", "layer-exact with arXiv 2311.11656", (2, 2, 3, 1)),
        _attendnext("attendnext_deep", "the other shape of that size", (3, 5, 6, 2)),
        _TINY,
        replace(
            _TINY,
            name="attendnext_tiny_condenser",
            note="for tests: the condenser of arXiv 2008.04245",
            condenser=CLASSICAL,
        ),
    )
}

DEFAULT = "attendnext"


def lookup(name: str) -> Architecture:
    """Find an architecture by its name.

    Raises:
        ModelError: There is none; the hint names the nearest.
    """
    try:
        return REGISTRY[name]
    except KeyError:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), REGISTRY, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(REGISTRY)}"
        raise ModelError(f"no network is called `{name}`", hint) from None
