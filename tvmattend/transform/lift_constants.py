# SPDX-License-Identifier: Apache-2.0
"""Turn the weights inside grouped functions into arguments, which FuseTIR asks for.

    f(x) = call_tir(g, (x, const))     ->     f(x, w) = call_tir(g, (x, w)),  f(x, const) in main

The weights stay inside until here because they are packed while operators become PrimFuncs, and
only a constant can be packed at compile time. The functions also get short names: `dcac`, `dcac1`.
"""

from collections.abc import Mapping
from typing import Any

from tvmattend.expressions import is_constant

COMPOSITE = "Composite"


def lift_constants(mod: Any, kernels: Mapping[str, str]) -> Any:
    """Lift the constants of every function that a rule has grouped.

    Args:
        mod: IRModule in which operators are `call_tir` already.
        kernels: Prefix of the new names by the rule's name, the function's attribute `Composite`.
    """
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder(mod)
    lifted: dict[Any, tuple[Any, list[Any]]] = {}
    grouped = [
        (gvar, func)
        for gvar, func in mod.functions_items()
        if isinstance(func, relax.Function) and COMPOSITE in (func.attrs or {})
    ]
    order = {
        binding.value.op: place
        for place, binding in enumerate(mod["main"].body.blocks[0].bindings)
        if isinstance(binding.value, relax.Call)
    }
    for gvar, func in sorted(grouped, key=lambda item: order[item[0]]):
        kernel = kernels[str(func.attrs[COMPOSITE])]
        function, constants = _lift(func)
        lifted[gvar] = builder.add_func(function, kernel), constants
    result = builder.get()
    result["main"] = _call_with_constants(builder, mod["main"], lifted)
    for gvar in lifted:
        del result[gvar]
    # Bodies are made by hand; this gives them their types.
    return relax.transform.Normalize()(tvm.IRModule(result.functions, attrs=mod.attrs))


def _lift(func: Any) -> tuple[Any, list[Any]]:
    """The function with a parameter for each constant, and the constants in their order."""
    import tvm
    from tvm import relax

    constants: list[Any] = []
    parameters: list[Any] = []

    def parameter(field: Any) -> Any:
        if not is_constant(field):
            return field
        constants.append(field)
        parameters.append(relax.Var(f"w{len(constants)}", field.ty))
        return parameters[-1]

    bindings = []
    for binding in func.body.blocks[0].bindings:
        call = binding.value
        gvar, arguments = call.args[0], call.args[1]
        fields = relax.Tuple([parameter(field) for field in arguments.fields])
        value = relax.Call(call.op, [gvar, fields, *call.args[2:]], call.attrs, call.ty_args)
        bindings.append(relax.VarBinding(binding.var, value))
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], func.body.body)
    # The attribute `Composite` has done its work; kept, a later pass would take it for a backend's.
    kept = {key: value for key, value in func.attrs.items() if key != COMPOSITE}
    attrs = tvm.ir.make_node("ir.DictAttrs", **kept)
    function = relax.Function([*func.params, *parameters], body, func.ret_ty, True, attrs)
    return function, constants


def _call_with_constants(
    builder: Any, main: Any, lifted: Mapping[Any, tuple[Any, list[Any]]]
) -> Any:
    from tvm import relax

    bindings = []
    for binding in main.body.blocks[0].bindings:
        call = binding.value
        if isinstance(call, relax.Call) and call.op in lifted:
            gvar, constants = lifted[call.op]
            call = builder.normalize(relax.Call(gvar, [*call.args, *constants]))
        bindings.append(relax.VarBinding(binding.var, call))
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], main.body.body)
    return relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
