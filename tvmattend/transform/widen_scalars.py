# SPDX-License-Identifier: Apache-2.0
"""Keep learned scalars out of the text of fused kernels.

    multiply(x, const S)      ->  multiply(x, const S of shape (1, 1, 1, 1))

TVM writes a scalar constant into the kernel as an immediate. The learned scale of a condenser would
then be part of the kernel's structural hash, and a network trained further would find no record of
its kernels. As a tensor it becomes an argument, like every other weight.
"""

from typing import Any

from tvmattend.expressions import is_constant, op_name
from tvmattend.transform.lift_constants import COMPOSITE
from tvmattend.transform.pieces import MULTIPLY


def widen_scalars(mod: Any) -> Any:
    """Widen the scalar factors within the functions that a rule has grouped.

    Args:
        mod: IRModule of operators, behind `group`.
    """
    import tvm
    from tvm import relax

    functions = {
        gvar: _widen(func)
        if isinstance(func, relax.Function) and COMPOSITE in (func.attrs or {})
        else func
        for gvar, func in mod.functions_items()
    }
    # Bodies are made by hand; this gives them their types.
    return relax.transform.Normalize()(tvm.IRModule(functions, attrs=mod.attrs))


def _widen(func: Any) -> Any:
    from tvm import relax

    bindings = []
    for binding in func.body.blocks[0].bindings:
        value = binding.value
        if op_name(value) == MULTIPLY and any(_is_scalar(factor) for factor in value.args):
            rank = len(value.ty.shape)
            factors = [_wide(f, rank) if _is_scalar(f) else f for f in value.args]
            value = relax.BlockBuilder().normalize(relax.Call(value.op, factors))
        bindings.append(relax.VarBinding(binding.var, value))
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], func.body.body)
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def _is_scalar(expression: Any) -> bool:
    return is_constant(expression) and len(expression.value.shape) == 0


def _wide(scalar: Any, rank: int) -> Any:
    from tvm import relax

    return relax.const(scalar.value.numpy().reshape([1] * rank))
