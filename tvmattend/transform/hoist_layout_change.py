# SPDX-License-Identifier: Apache-2.0
"""Move a change of layout from behind a pooling to before it.

    permute_dims(pool(x; NCHW))      ->  pool(permute_dims(x); NHWC)

A pooling and a permutation commute. ConvertLayout leaves poolings in the layout of their input, so
that a block in NHWC would start from two tensors, one permuted before and one after its pooling;
moved up and merged, there is one change, at the block's edge.
"""

from collections.abc import Collection
from typing import Any

from tvmattend.transform.dataflow import Dataflow, op_name
from tvmattend.transform.pieces import POOLS


def hoist_layout_changes(mod: Any, poolings: Collection[str]) -> Any:
    """Hoist the changes behind the named poolings and merge the equal ones.

    Args:
        mod: IRModule of operators.
        poolings: Variables of `main`; others stay as they are, because a change before a pooling
            moves four times the elements of one behind it.
    """
    import tvm
    from tvm import relax

    merge = tvm.transform.Sequential([
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.DeadCodeElimination(["main"]),
    ])
    # Each convolution behind a pooling has brought a change of its own. A pooling of a pooled map
    # has to let its change pass before the first one has a single reader.
    mod = merge(mod)
    for pooling in (*POOLS, *POOLS):
        mod["main"] = _hoist(mod["main"], pooling, poolings)
        mod = merge(mod)
    return mod


def _hoist(main: Any, pooling: str, poolings: Collection[str]) -> Any:
    from tvm import relax
    from tvm.relax.dpl import is_op, rewrite_call, wildcard

    flow = Dataflow(main)
    pool = is_op(pooling)(wildcard())

    def hoist(call: Any, found: Any) -> Any:
        pooled = found[pool]
        variable = flow.variable(pooled)
        if str(variable.name) not in poolings:
            return call
        axes = [int(axis) for axis in call.attrs.axes]
        layout = "".join(str(pooled.attrs.layout)[axis] for axis in axes)
        if layout not in {"NCHW", "NHWC"} or len(flow.readers(variable)) != 1:
            return call
        operator = getattr(relax.op.nn, op_name(pooled).rpartition(".")[2])
        kept = ("pool_size", "strides", "padding", "dilation", "ceil_mode", "count_include_pad")
        options = {key: pooled.attrs[key] for key in kept}
        return operator(relax.op.permute_dims(pooled.args[0], axes), **options, layout=layout)

    return rewrite_call(is_op("relax.permute_dims")(pool), hoist, main)
