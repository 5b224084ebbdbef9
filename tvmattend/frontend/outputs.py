# SPDX-License-Identifier: Apache-2.0
"""What a network says that its tensors are, and whether the import agrees."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch.export import ExportedProgram

from tvmattend.errors import UnsupportedOperatorError
from tvmattend.frontend.imported import TensorSpec
from tvmattend.frontend.onnx_reference import pool_axes

# Extents (None where the network does not say) and NumPy's name of the element type.
Declared = tuple[tuple[int | None, ...], str]
_POOLS = ("AveragePool", "LpPool", "MaxPool")


def of_program(program: ExportedProgram) -> list[Declared | None]:
    """Give what torch.export has found for each output; None for what is no tensor."""
    nodes = {node.name: node for node in program.graph.nodes}
    return [
        of_value(nodes[str(name)].meta.get("val")) for name in program.graph_signature.user_outputs
    ]


def of_value(value: Any) -> tuple[tuple[int, ...], str] | None:
    """Give shape and element type of what torch.export has found; None for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(int(extent) for extent in value.shape), str(value.dtype).removeprefix("torch.")


def of_graph(model: Any) -> dict[str, Declared]:
    """Give what ONNX's own shape inference finds for each tensor of a graph of fixed inputs.

    The shapes that the file declares are passed over: they may be symbolic, of another batch, or
    of that inference before a window of a pool that would start in padding is taken off, as here.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = _inferred(bare)
    while pool := _wrong_pool(bare, found):
        node, (shape, dtype) = pool
        bare.graph.node.remove(node)
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        result = onnx.helper.make_tensor_value_info(node.output[0], kind, shape)
        bare.graph.input.append(result)
        found = _inferred(bare)
    return found


def _inferred(model: Any) -> dict[str, Declared]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    entries = {
        entry.name: _of_entry(entry) for entry in (*graph.value_info, *graph.output, *graph.input)
    }
    return {name: declared for name, declared in entries.items() if declared is not None}


def _wrong_pool(model: Any, found: Mapping[str, Declared]) -> tuple[Any, Declared] | None:
    """Find the first pool whose windows are counted wrongly before opset 22, and its result."""
    for node in model.graph.node:
        if node.op_type not in _POOLS:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        # SAME has as many windows as strides.
        same = attributes.pop("auto_pad", b"").startswith(b"SAME")
        if same or not attributes.get("ceil_mode"):
            continue
        pooled, result = found.get(node.input[0]), found.get(node.output[0])
        extents = [] if pooled is None else [extent for extent in pooled[0] if extent is not None]
        if pooled is None or result is None or len(extents) < len(pooled[0]):
            continue
        axes = pool_axes(extents[2:], attributes)
        shape = (*extents[:2], *(axis.windows for axis in axes))
        if shape != result[0]:
            return node, (shape, result[1])
    return None


def _of_entry(entry: Any) -> Declared | None:
    kind = entry.type.tensor_type
    if not kind.HasField("shape"):
        return None
    shape = tuple(
        extent.dim_value if extent.HasField("dim_value") else None for extent in kind.shape.dim
    )
    return shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name


def fits(shape: Sequence[int], dtype: str, declared: Declared) -> bool:
    """Whether a tensor is what a network says, as far as it says."""
    theirs, kind = declared
    return (
        dtype == kind
        and len(shape) == len(theirs)
        and all(other in {None, own} for own, other in zip(shape, theirs, strict=True))
    )


def in_words(declared: Declared) -> str:
    """Give `float32 [1, ?, 8]`."""
    shape, dtype = declared
    return f"{dtype} [{', '.join('?' if extent is None else str(extent) for extent in shape)}]"


def check_outputs(found: Sequence[TensorSpec], declared: Sequence[Declared | None]) -> None:
    """Compare the outputs of the import with those of the network.

    Raises:
        UnsupportedOperatorError: They differ, so an operator was translated wrongly.
    """
    for spec, said in zip(found, declared, strict=True):
        if said is not None and not fits(spec.shape, spec.dtype, said):
            raise UnsupportedOperatorError(
                f"output `{spec.name}` is {in_words((spec.shape, spec.dtype))} after the import, "
                f"but {in_words(said)} in the network",
                "an operator of it is translated wrongly; express it with convolutions, pools, "
                "element-wise or linear operators",
            )
