# SPDX-License-Identifier: Apache-2.0
"""Tables and figures as a terminal shows them."""

import math
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Align columns of text; those in `left` to the left."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]


def micro(seconds: float | None) -> str:
    """Microseconds with three or more significant digits."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def speed(gflops: float | None) -> str:
    """GFLOP/s with three significant digits, two below 1."""
    if gflops is None:
        return "-"
    return f"{gflops:.3g}" if gflops >= 1 else f"{gflops:.2f}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def how_many(count: int, thing: str) -> str:
    """`1 thread`, `4 threads`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
