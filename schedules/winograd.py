# SPDX-License-Identifier: Apache-2.0
"""Winograd's F(m, 3): m outputs of a filter with three taps from m + 2 products instead of 3 m.

    y = A^T [(G w) * (B^T d)],    d: m + 2 inputs, w: three taps, y: m outputs

for m = 2 with the interpolation points 0, 1, -1, infinity and for m = 4 with 2 and -2 as well
(Lavin and Gray, arXiv 1509.09308, sections 4.1 and 4.3). Where pixels are the vector axis it is
used along one axis of the map, its rows: the other axis stays a plain sum over taps, so that
vectors along it need no shuffles, a transform is a few vector additions, and transformed weights
are twice as many, not 36/9 (`winograd_pixels`). Where channels are, both axes are transformed
(`winograd_tiles`). In fp32 the result is within 2e-6 of the direct sum's, relative to the largest
output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedules import blocks

TAPS = 3

_G2 = ((1.0, 0.0, 0.0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0.0, 0.0, 1.0))
_G4 = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


@dataclass(frozen=True)
class Winograd:
    """One of the two algorithms.

    Attributes:
        outputs: m, rows of a tile.
    """

    outputs: int

    @property
    def inputs(self) -> int:
        """Rows that a tile reads, and products of a pixel."""
        return self.outputs + TAPS - 1

    def matrix(self) -> Any:
        """G, a float64 array [m + 2, 3]."""
        import numpy as np

        return np.array(_G2 if self.outputs == 2 else _G4)

    def transform_taps(self, taps: Sequence[Any]) -> list[Any]:
        """G w for three expressions: m + 2 expressions, which share their sums."""
        first, middle, last = taps
        if self.outputs == 2:
            even, odd = 0.5 * (first + last), 0.5 * middle
            return [first, even + odd, even - odd, last]
        # Products: LLVM would keep a division by six, and the kernel would wait for it.
        near, odd = (1 / 6) * (first + last), (1 / 12) * middle
        far = (1 / 24) * first + (1 / 6) * last
        return [
            0.25 * first,
            -near - 2.0 * odd,
            2.0 * odd - near,
            far + odd,
            far - odd,
            last,
        ]

    def transform_inputs(self, rows: Sequence[Any], first: Any = 1.0, last: Any = 1.0) -> list[Any]:
        """B^T d for m + 2 expressions; sums that several results share are the same expressions.

        Args:
            rows: d, from top to bottom.
            first: Weight of the first row: 0 where it is padding.
            last: Weight of the last row.
        """
        if self.outputs == 2:
            d0, d1, d2, d3 = rows
            return [first * d0 - d2, d1 + d2, d2 - d1, d1 - last * d3]
        d0, d1, d2, d3, d4, d5 = rows
        even, odd = d4 - 4.0 * d2, d3 - 4.0 * d1
        near, far = d4 - d2, 2.0 * (d3 - d1)
        return [
            4.0 * first * d0 - 5.0 * d2 + d4,
            even + odd,
            even - odd,
            near + far,
            near - far,
            4.0 * d1 - 5.0 * d3 + last * d5,
        ]

    def transform_outputs(self, products: Sequence[Any]) -> list[Any]:
        """A^T m for m + 2 expressions: the outputs from top to bottom."""
        if self.outputs == 2:
            m0, m1, m2, m3 = products
            return [m0 + m1 + m2, m1 - m2 - m3]
        m0, m1, m2, m3, m4, m5 = products
        near, near_odd, far, far_odd = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        return [
            m0 + near + far,
            near_odd + 2.0 * far_odd,
            near + 4.0 * far,
            near_odd + 8.0 * far_odd + m5,
        ]


F2, F4 = Winograd(2), Winograd(4)


def transform_tile_weights(rows: Winograd, cols: Winograd, weight: Any) -> Any:
    """G w G^T, in double precision.

    Args:
        rows: The algorithm down the kernel.
        cols: The algorithm across.
        weight: OIHW array [F, C, 3, 3].

    Returns:
        Array [F, C, rows.inputs, cols.inputs] of the same dtype.
    """
    import numpy as np

    double = weight.astype("float64")
    transformed = np.einsum("ki,fcij,lj->fckl", rows.matrix(), double, cols.matrix())
    return transformed.astype(weight.dtype)


def weight_transforms(sch: Any, conv: Any) -> list[Any]:
    """The block that transforms a convolution's weights, if its kernel does."""
    producers = sch.get_producers(conv)
    names = {block: str(sch.get(block).name_hint) for block in producers}
    return [block for block, name in names.items() if name.startswith(blocks.TILE_WEIGHTS)]


# Fewer channels a column do not pay for the transforms.
_FEWEST_CHANNELS = 6


def suits(
    channels: int,
    features: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> bool:
    """Whether a convolution can be computed this way, on a map of some size.

    Args:
        channels: Of one column.
        features: Of one column.
        kernel: Down, across.
        strides: Down, across.
        padding: Top, left, bottom, right.
    """
    return (
        kernel == (TAPS, TAPS)
        and strides == (1, 1)
        and padding == (1, 1, 1, 1)
        and min(channels, features) >= _FEWEST_CHANNELS
    )


def cuts(height: int) -> bool:
    """Whether tiles of rows cut a map exactly, which vectors of pixels need."""
    return height % 2 == 0


def algorithm(height: int) -> Winograd:
    """The one with the fewest products whose tiles cut a map exactly.

    Raises:
        ValueError: The number of rows is odd.
    """
    if not cuts(height):
        raise ValueError(f"no tiles of two or four rows cut a map of {height}")
    return F4 if height % 4 == 0 else F2


def pick(index: Any, choices: Sequence[Any]) -> Any:
    """The expression of a number that an unrolled loop makes a constant.

    A select, not `if_then_else`: TVM counts only one of its sides as work.
    """
    from tvm import tirx

    found = choices[-1]
    for place in range(len(choices) - 2, -1, -1):
        found = tirx.Select(index == place, choices[place], found)
    return found


def transformed_rows(
    algorithm: Winograd, read: Any, tile: Any, height: int, dtype: str
) -> list[Any]:
    """B^T d of a tile of rows at the edges of a map too, whose padding is one row of zeros.

    The lowest tile may hang over the map: what it reads there is zero.

    Args:
        algorithm: Rows of a tile.
        read: Gives the pixel of a row of the map.
        tile: Its number, from the top.
        height: Rows of the map.
        dtype: Of the pixels.
    """
    from tvm import tirx

    y = tile * algorithm.outputs - 1
    bottom = y + algorithm.inputs - 1
    # A weight of zero, not a branch: LLVM spills odd vectors that a branch carries.
    zero, one = tirx.const(0.0, dtype), tirx.const(1.0, dtype)
    overhang = -height % algorithm.outputs

    def pixel(i: int) -> Any:
        if i == 0:
            return read(tirx.max(y, 0))
        if i < algorithm.inputs - 1 - overhang:
            return read(y + i)
        value = read(tirx.min(y + i, height - 1))
        # Of the last row the transform itself takes a weight.
        if i == algorithm.inputs - 1:
            return value
        return value * tirx.Select(y + i < height, one, zero)

    first, last = tirx.Select(y >= 0, one, zero), tirx.Select(bottom < height, one, zero)
    rows = [pixel(i) for i in range(algorithm.inputs)]
    return algorithm.transform_inputs(rows, first, last)
