# SPDX-License-Identifier: Apache-2.0
"""Winograd's F(m, 3): m outputs of a filter with three taps from m + 2 products instead of 3 m.

    y = A^T [(G w) * (B^T d)],    d: m + 2 inputs, w: three taps, y: m outputs

for m = 2 with the interpolation points 0, 1, -1, infinity and for m = 4 with 2 and -2 as well
(Lavin and Gray, arXiv 1509.09308, sections 4.1 and 4.3). It is used along one axis, the rows of a
map: the other axis stays a plain sum over taps, so that vectors along it need no shuffles, a
transform is a few vector additions, and the weights grow to 6/3, not to 36/9. In fp32 the result is
within 1e-6 of the direct sum's, relative to the largest output.
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

    def transform_weights(self, weight: Any) -> Any:
        """G w along the rows of the kernel, in double precision.

        Args:
            weight: OIHW array [F, C, 3, KW].

        Returns:
            Array [F, C, m + 2, KW] of the same dtype.
        """
        import numpy as np

        matrix = np.array(_G2 if self.outputs == 2 else _G4)
        transformed = np.einsum("ki,fcij->fckj", matrix, weight.astype("float64"))
        return transformed.astype(weight.dtype)

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


# Fewer channels a column do not pay for the transforms.
_FEWEST_CHANNELS = 6


def applies(
    height: int,
    channels: int,
    features: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> bool:
    """Whether a convolution is computed this way.

    Args:
        height: Rows of the map.
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
        and height % 2 == 0
        and min(channels, features) >= _FEWEST_CHANNELS
    )


def algorithm(height: int) -> Winograd:
    """The one with the fewest products whose tiles cut a map exactly.

    Raises:
        ValueError: The number of rows is odd.
    """
    if height % 2:
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
    rows = [tirx.max(y, 0), *(y + i for i in range(1, algorithm.inputs - 1))]
    rows.append(tirx.min(bottom, height - 1))
    # A weight of zero, not a branch: LLVM spills odd vectors that a branch carries.
    zero, one = tirx.const(0.0, dtype), tirx.const(1.0, dtype)
    first, last = tirx.Select(y >= 0, one, zero), tirx.Select(bottom < height, one, zero)
    return algorithm.transform_inputs([read(row) for row in rows], first, last)


def fill_slab(sch: Any, slab: Any, lanes: int, depth: int = 1) -> None:
    """Zero the slab, then transform what lies inside the map, all points of a vector at once.

    Args:
        sch: The schedule.
        slab: The block, whose innermost loops are the points, two more, and the vectors' axis.
        lanes: Of a register.
        depth: Loops around the slab's own.
    """
    zeros = sch.decompose_padding(slab, sch.get_loops(slab)[depth])
    *_, points, outer, inner, axis = sch.get_loops(slab)
    across, lane = sch.split(axis, [None, blocks.whole(int(sch.get(axis).extent), lanes)])
    sch.reorder(outer, inner, across, points, lane)
    sch.unroll(points)
    sch.vectorize(lane)
    # Of one line; TVM does not find out that indices of more axes are contiguous.
    fused = sch.fuse(*sch.get_loops(zeros)[-2:])
    length = blocks.vector_length(int(sch.get(fused).extent), lanes)
    _, lane = sch.split(fused, [None, length])
    sch.vectorize(lane)
