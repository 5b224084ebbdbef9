# SPDX-License-Identifier: Apache-2.0
"""What the passes of frontend and transform ask about a single Relax expression."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def op_name(expression: Any) -> str:
    """Give `relax.nn.conv2d` for a call of an operator, the empty string for all else."""
    from tvm import relax

    if not isinstance(expression, relax.Call):
        return ""
    return str(getattr(expression.op, "name", ""))


def is_constant(expression: Any) -> bool:
    """Whether the expression is a constant tensor."""
    from tvm.ir import GenericConst

    return isinstance(expression, GenericConst) and hasattr(expression.value, "numpy")


def constant(expression: Any) -> "np.ndarray[Any, Any] | None":
    """Give the array of a constant tensor, None for all else."""
    import numpy as np

    return np.asarray(expression.value.numpy()) if is_constant(expression) else None


def static_shape(expression: Any) -> tuple[int, ...] | None:
    """Extents of a tensor, or None if one of them is not known at compile time."""
    from tvm import tirx

    shape = getattr(expression.ty, "shape", None)
    if shape is None or not all(isinstance(extent, tirx.IntImm) for extent in shape):
        return None
    return tuple(int(extent) for extent in shape)
