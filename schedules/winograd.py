# SPDX-License-Identifier: Apache-2.0
"""Winograd's F(4, 3): four outputs of a filter with three taps from six products instead of twelve.

    y = A^T [(G w) * (B^T d)],    d: six inputs, w: three taps, y: four outputs

with the interpolation points 0, 1, -1, 2, -2 and infinity (Lavin and Gray, arXiv 1509.09308,
section 4.3). It is used along one axis, the rows of a map: the other axis stays a plain sum over
taps, so that vectors along it need no shuffles, a transform is a few vector additions, and the
weights grow to 6/3, not to 36/9. In fp32 the result is within 1e-6 of the direct sum's, relative to
the largest output.
"""

from collections.abc import Sequence
from typing import Any

OUTPUTS, TAPS = 4, 3
# Of a tile, and products of a pixel.
INPUTS = OUTPUTS + TAPS - 1

_G = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


def transform_weights(weight: Any) -> Any:
    """G w along the rows of the kernel, in double precision.

    Args:
        weight: OIHW array [F, C, 3, KW].

    Returns:
        Array [F, C, 6, KW] of the same dtype.
    """
    import numpy as np

    transformed = np.einsum("ki,fcij->fckj", np.array(_G), weight.astype("float64"))
    return transformed.astype(weight.dtype)


def transform_inputs(rows: Sequence[Any], first: Any = 1.0, last: Any = 1.0) -> list[Any]:
    """B^T d for six expressions; sums that several results share are the same expressions.

    Args:
        rows: d, from top to bottom.
        first: Weight of the first row: 0 where it is padding.
        last: Weight of the last row.
    """
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


def transform_outputs(products: Sequence[Any]) -> list[Any]:
    """A^T m for six expressions: the four outputs from top to bottom."""
    m0, m1, m2, m3, m4, m5 = products
    near, near_odd, far, far_odd = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return [
        m0 + near + far,
        near_odd + 2.0 * far_odd,
        near + 4.0 * far,
        near_odd + 8.0 * far_odd + m5,
    ]


def pick(index: Any, choices: Sequence[Any]) -> Any:
    """The expression of a number that an unrolled loop makes a constant.

    A select, not `if_then_else`: TVM counts only one of its sides as work.
    """
    from tvm import tirx

    found = choices[-1]
    for place in range(len(choices) - 2, -1, -1):
        found = tirx.Select(index == place, choices[place], found)
    return found
