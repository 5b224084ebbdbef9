# SPDX-License-Identifier: Apache-2.0
"""What depends on static shapes and small constants alone is computed ahead of the import.

Shape(x) of a static shape               ->  an initializer
f(initializers), each of a few numbers   ->  an initializer
If(an initializer)                       ->  the branch that is taken

Exporters spell out paddings, slices and shapes node by node, and TVM's importer takes them for
computed at run time. Weights stay as they are.
"""

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tvmattend.frontend.onnx_graph import opset
from tvmattend.frontend.onnx_reference import evaluator
from tvmattend.frontend.outputs import of_graph

# Numbers in a tensor; what is larger is a weight.
_MOST = 1 << 16
_RANDOM = ("Bernoulli", "Multinomial", "Random")

Array = Any


def fold_constants(model: Any) -> None:
    """Replace nodes by initializers, in place, until there is none left to replace.

    Args:
        model: A checked model of static inputs.
    """
    while _fold_once(model):
        pass


def _fold_once(model: Any) -> bool:
    """Walk the graph once; a shape may be known only when what a reshape is told has been."""
    graph = model.graph
    shapes = _shapes(model)
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if np.prod(tensor.dims, dtype=int) <= _MOST
    }
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        if node.op_type == "If" and node.input[0] in known:
            kept += _branch(graph, node, bool(known[node.input[0]]))
            continue
        values = None if outputs & set(node.output) else _values(model, node, known, shapes)
        if values is None or max(value.size for value in values) > _MOST:
            kept.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            known[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    folded = [node.output[0] for node in kept] != [node.output[0] for node in graph.node]
    del graph.node[:]
    graph.node.extend(kept)
    return folded


def _branch(graph: Any, node: Any, taken: bool) -> list[Any]:
    """The nodes of the branch of an `If` that is always taken; its weights go into the graph."""
    name = "then_branch" if taken else "else_branch"
    (body,) = (attribute.g for attribute in node.attribute if attribute.name == name)
    graph.initializer.extend(body.initializer)
    named = [
        helper.make_node("Identity", [inner.name], [outer])
        for inner, outer in zip(body.output, node.output, strict=True)
    ]
    return [*body.node, *named]


def _shapes(model: Any) -> dict[str, list[int]]:
    """Static shapes by the names of their tensors."""
    return {
        name: [extent for extent in shape if extent is not None]
        for name, (shape, _) in of_graph(model).items()
        if None not in shape
    }


def _values(
    model: Any, node: Any, known: dict[str, Array], shapes: dict[str, list[int]]
) -> list[Array] | None:
    """Compute a node's outputs; None if they depend on inputs, or are the import's to refuse."""
    if node.op_type == "Shape" and node.input[0] in shapes:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        shape = shapes[node.input[0]][ends.get("start") : ends.get("end")]
        return [np.array(shape, "int64")]
    given = list(dict.fromkeys(name for name in node.input if name))
    nested = any(attribute.HasField("g") for attribute in node.attribute)
    if nested or node.op_type.startswith(_RANDOM) or not set(given) <= known.keys():
        return None
    graph = helper.make_graph(
        [node],
        "fold",
        [],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
        [numpy_helper.from_array(known[name], name) for name in given],
    )
    alone = helper.make_model(graph, opset_imports=list(model.opset_import))
    try:
        found = evaluator(alone, opset(model)).run(None, {})
    except Exception:  # noqa: BLE001  (it fails as it likes; the import says what is wrong)
        return None
    return [np.asarray(value) for value in found]
