# SPDX-License-Identifier: Apache-2.0
"""Which Relax operators a network may consist of: those that are known to compile and be right.

TVM's importers translate more than its compiler takes (`cumsum`, `sort`, `topk` fail in a later
pass, without a word of the network) and some of it wrongly (`grid_sample`). What is not named
here is refused where the network's own line is still known.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tvm import relax

from tvmattend.expressions import constant, op_name
from tvmattend.frontend.rewriting import parts

_ELEMENTWISE = """
    abs acos acosh add asin asinh astype atan atanh bitwise_and bitwise_not bitwise_or bitwise_xor
    ceil clip cos divide equal erf exp floor floor_divide floor_mod greater greater_equal
    isfinite isinf isnan less less_equal log logical_and logical_not logical_or logical_xor maximum
    minimum mod multiply negative not_equal power round rsqrt sigmoid sign sin sqrt square
    subtract tan tanh trunc where
    nn.gelu nn.gelu_tanh nn.leakyrelu nn.prelu nn.relu nn.relu6 nn.selu nn.silu nn.softplus
"""
_REDUCTIONS = "argmax argmin max mean min prod std sum variance"
_LAYERS = """
    matmul nn.conv1d nn.conv1d_transpose nn.conv2d nn.conv2d_transpose nn.conv3d
    nn.avg_pool1d nn.avg_pool2d nn.avg_pool3d nn.max_pool1d nn.max_pool2d nn.max_pool3d
    nn.adaptive_avg_pool1d nn.adaptive_avg_pool2d nn.adaptive_avg_pool3d
    nn.softmax nn.log_softmax nn.layer_norm image.resize2d
"""
_MOVEMENT = """
    arange broadcast_to concat expand_dims flatten flip full full_like nn.batch_flatten nn.pad ones
    ones_like permute_dims repeat reshape slice_scatter squeeze stack strided_slice take tile
    zeros zeros_like
"""


def _full_names(text: str) -> frozenset[str]:
    return frozenset(f"relax.{name}" for name in text.split())


# In the canonical form.
KNOWN = _full_names(_ELEMENTWISE + _REDUCTIONS + _LAYERS + _MOVEMENT)
# Between import and canonical form, where they are folded away, spelled out, or refused with a
# reason of theirs.
_PASSING = _full_names("""
    cosh nn.batch_norm nn.dropout nn.group_norm nn.instance_norm null_value shape_of
    shape_to_tensor sinh size split tensor_to_shape
""")
_TO_A_NUMBER = _full_names(_REDUCTIONS)
# Of what computes, all that takes booleans; the rest fails in code generation.
_LOGICAL = _full_names("""
    astype bitwise_and bitwise_not bitwise_or bitwise_xor logical_and logical_not logical_or
    logical_xor where
""")
_NOT_OF_BOOLEANS = _full_names(_ELEMENTWISE + _REDUCTIONS + _LAYERS) - _LOGICAL


class OperatorCheck:
    """Finds what cannot be compiled of what one node of a network was translated into.

    Args:
        binding: Gives the expression behind a variable of the function that is being built, None
            for its parameters.
    """

    def __init__(self, binding: Callable[[Any], Any]) -> None:
        self._binding = binding
        self._seen: set[Any] = set()

    def fault(self, result: Any) -> str:
        """Say what cannot be compiled of all that `result` needs and no result before it did."""
        for call in self._new_calls(result):
            name = op_name(call)
            if name == "relax.call_tir":
                return "TVM's importer makes a kernel of it, not an operator"
            if name and name not in KNOWN | _PASSING:
                return f"it becomes `{name}`, which cannot be compiled"
            if name in _NOT_OF_BOOLEANS and any(map(_is_boolean, call.args)):
                return f"`{name}` takes no booleans: make numbers of them"
        return ""

    def _new_calls(self, result: Any) -> Iterator[Any]:
        waiting = list(result) if isinstance(result, list | tuple) else [result]
        while waiting:
            expression = waiting.pop()
            if isinstance(expression, relax.Var):
                if expression not in self._seen:
                    self._seen.add(expression)
                    waiting.append(self._binding(expression))
                continue
            if isinstance(expression, relax.Call):
                yield expression
            waiting.extend(parts(expression))


def makes_a_number(call: Any) -> bool:
    """Whether a call reduces a whole tensor to a single number, which no design space takes."""
    if op_name(call) not in _TO_A_NUMBER or constant(call.args[0]) is not None:
        return False
    return len(call.ty.shape) == 0 and len(call.args[0].ty.shape) > 0


def _is_boolean(argument: Any) -> bool:
    """Whether an argument is a boolean tensor that is computed."""
    kind = getattr(argument, "ty", None)
    if constant(argument) is not None or not isinstance(kind, relax.TensorType):
        return False
    return str(kind.dtype.dtype) == "bool"
