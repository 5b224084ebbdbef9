# SPDX-License-Identifier: Apache-2.0
"""What a C function can express is read from Relax; anything else is an error that names it."""

from typing import Any

import numpy as np
import pytest

from tvmattend.errors import CompileError
from tvmattend.standalone.graph import Ref, read_graph

SHAPE = (2, 8)


def _module(body: Any, kernels: Any = None, shape: Any = SHAPE) -> Any:
    """A Relax function `main(x)` with the given body, beside PrimFuncs."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(body(builder, x))
        builder.emit_func_output(out)
    mod = builder.get()
    for name, func in (kernels or {}).items():
        mod[name] = func
    return mod


def _twice(builder: Any, x: Any) -> Any:
    from tvm import te

    return builder.call_te(
        lambda a: te.compute(a.shape, lambda *i: a[i] * 2.0), x, primfunc_name_hint="twice"
    )


def test_calls_weights_and_outputs_are_read() -> None:
    from tvm import relax, te

    w = np.arange(16, dtype="float32").reshape(SHAPE)

    def body(builder: Any, x: Any) -> Any:
        def add(a: Any, b: Any) -> Any:
            return te.compute(a.shape, lambda *i: a[i] + b[i])

        y = builder.emit(builder.call_te(add, x, relax.const(w), primfunc_name_hint="add"))
        z = builder.emit(builder.call_te(add, y, relax.const(w), primfunc_name_hint="add"))
        return relax.Tuple([z, y, x])

    graph = read_graph(_module(body))
    assert [call.arguments for call in graph.calls] == [
        (Ref("input", 0), Ref("weight", 0)),
        (Ref("value", 0), Ref("weight", 0)),
    ]
    assert len(graph.weights) == 1, "the same bytes are stored once"
    assert np.array_equal(graph.weights[0], w)
    assert graph.outputs == (Ref("value", 1), Ref("value", 0), Ref("input", 0))
    assert graph.tensor(graph.outputs[0]).size == 64


def test_a_reshape_is_a_view() -> None:
    from tvm import relax

    def body(builder: Any, x: Any) -> Any:
        y = builder.emit(_twice(builder, x))
        return _twice(builder, builder.emit(relax.op.reshape(y, (16,))))

    graph = read_graph(_module(body))
    assert [len(call.results) for call in graph.calls] == [1, 1]
    assert graph.calls[1].arguments == graph.calls[0].results


def test_a_dynamic_shape_is_named() -> None:
    from tvm import tirx

    with pytest.raises(CompileError, match=r"`x` has the dynamic shape .*n.*"):
        read_graph(_module(_twice, shape=(tirx.Var("n", "int64"), 8)))


def test_an_operator_that_is_no_kernel_is_named() -> None:
    from tvm import relax

    with pytest.raises(CompileError, match=r"calls `relax\.nn\.relu`, which is not a kernel"):
        read_graph(_module(lambda _, x: relax.op.nn.relu(x)))


def test_a_call_into_the_runtime_is_named() -> None:
    from tvm import relax

    def body(builder: Any, x: Any) -> Any:
        return relax.call_dps_packed("some.runtime.function", [x], out_ty=x.ty)

    with pytest.raises(CompileError, match=r"calls `relax\.call_dps_packed`"):
        read_graph(_module(body))


def test_a_kernel_that_writes_its_argument_is_named() -> None:
    from tvm import relax

    inplace = _module(_twice)
    (kernel,) = [gvar for gvar in inplace.get_global_vars() if gvar.name_hint == "twice"]

    builder = relax.BlockBuilder(inplace)
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main2", [x]):
        with builder.dataflow():
            y = relax.op.call_tir_inplace(kernel, [x, x], [1], [x.ty])
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    mod = builder.get()
    mod["main"] = mod["main2"].with_attr("global_symbol", "main")
    with pytest.raises(CompileError, match=r"calls `relax\.call_tir_inplace`"):
        read_graph(mod)


def test_control_flow_is_named() -> None:
    from tvm import relax

    condition = relax.const(np.array(1, "bool"))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        chosen = builder.emit(relax.If(condition, relax.SeqExpr([], x), relax.SeqExpr([], x)))
        builder.emit_func_output(chosen)
    with pytest.raises(CompileError, match=r"is a If, which has no C form"):
        read_graph(builder.get())


def test_a_type_without_a_c_type_is_named() -> None:
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "bfloat16"))
    with builder.function("main", [x]):
        builder.emit_func_output(x)
    with pytest.raises(CompileError, match="`x` holds bfloat16"):
        read_graph(builder.get())
