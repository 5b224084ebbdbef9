# SPDX-License-Identifier: Apache-2.0
"""Operators that are spelled out before TVM's importer sees them, since it drops an argument.

add(x, y, alpha=a), sub(x, y, alpha=a)  ->  add(x, a y), sub(x, a y)
"""

from collections.abc import Callable
from typing import Any

import torch


def decompositions() -> Any:
    """Give PyTorch's own table, and ours in it, for `ExportedProgram.run_decompositions`."""
    table = torch.export.default_decompositions()
    for operator in (torch.ops.aten.add, torch.ops.aten.sub):
        for overload in (operator.Tensor, operator.Scalar):
            table[overload] = _with_alpha(operator)
    return table


def _with_alpha(operator: Callable[..., Any]) -> Callable[..., Any]:
    def scaled(x: Any, y: Any, alpha: Any = 1) -> Any:
        return NotImplemented if alpha == 1 else operator(x, y * alpha)

    return scaled
