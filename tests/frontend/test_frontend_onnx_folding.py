# SPDX-License-Identifier: Apache-2.0
"""What an exporter spells out of static shapes is computed before the import."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from relax_runner import relative_error
from torch import Tensor, nn
from torch.nn import functional

from tvmattend.frontend import import_model
from tvmattend.frontend.onnx_folding import fold_constants


class Net(nn.Module):
    """A convolution and a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


NETWORKS: dict[str, Callable[[Tensor], Tensor]] = {
    "pad": lambda y: functional.pad(y, (1, 2, 3, 0)),
    "reflect": lambda y: functional.pad(y, (1, 2, 3, 1), mode="reflect"),
    "chunk": lambda y: torch.cat(y.chunk(2, 1)[::-1], 2),
    "split": lambda y: y.split([3, 5], 1)[1],
    "reshape": lambda y: y.reshape(y.shape[0], 2, -1, y.shape[3]).transpose(1, 2).flatten(1),
    "local": nn.LocalResponseNorm(3),
    "token": lambda y: y.flatten(2).transpose(1, 2)[:, -1],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_older_exporter_writes_is_imported(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Net(NETWORKS[name]).eval(), (torch.zeros(1, 3, 9, 11),), str(path), dynamo=False
        )
    assert relative_error(import_model(str(path))) < 1e-5


def model_of(*nodes: object, **arrays: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 4))],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def operators(model: onnx.ModelProto) -> list[str]:
    fold_constants(model)
    return [node.op_type for node in model.graph.node]


def test_a_shape_that_a_folded_one_decides_is_folded_too() -> None:
    model = model_of(
        helper.make_node("Shape", ["x"], ["s"], start=1),
        helper.make_node("ReduceProd", ["s"], ["n"], keepdims=1),
        helper.make_node("Concat", ["two", "n"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["flat"]),
        helper.make_node("Shape", ["flat"], ["again"]),
        helper.make_node("Reshape", ["flat", "again"], ["y"]),
        two=np.array([2]),
    )
    assert operators(model) == ["Reshape", "Reshape"]
    values = {t.name: numpy_helper.to_array(t).tolist() for t in model.graph.initializer}
    assert (values["to"], values["again"]) == ([2, 12], [2, 12])


def test_the_branch_that_is_always_taken_stands_for_the_if() -> None:
    def branch(kind: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node(kind, ["x"], [kind])],
            kind,
            [],
            [helper.make_empty_tensor_value_info(kind)],
        )

    for taken, kind in ((True, "Relu"), (False, "Neg")):
        model = model_of(
            helper.make_node(
                "If", ["c"], ["z"], then_branch=branch("Relu"), else_branch=branch("Neg")
            ),
            helper.make_node("Abs", ["z"], ["y"]),
            c=np.array(taken),
        )
        assert operators(model) == [kind, "Identity", "Abs"]


def test_inputs_outputs_weights_and_chance_stay() -> None:
    computed = model_of(
        helper.make_node("ReduceSum", ["x"], ["a"], keepdims=0),
        helper.make_node("Add", ["a", "one"], ["y"]),
        one=np.float32(1)[None],
    )
    assert operators(computed) == ["ReduceSum", "Add"]
    output = model_of(helper.make_node("Neg", ["one"], ["y"]), one=np.ones(1, "float32"))
    assert operators(output) == ["Neg"]
    weights = model_of(
        helper.make_node("Neg", ["w"], ["v"]),
        helper.make_node("Add", ["v", "v"], ["y"]),
        w=np.ones((1 << 16) + 1, "float32"),
    )
    assert operators(weights) == ["Neg", "Add"]
    chance = model_of(
        helper.make_node("RandomNormal", [], ["r"], shape=[3]),
        helper.make_node("Neg", ["r"], ["y"]),
    )
    assert operators(chance) == ["RandomNormal", "Neg"]


def test_what_is_folded_is_what_the_reference_computes() -> None:
    """ONNX's own shifts the padding of these windows."""
    window = {"kernel_shape": [3], "strides": [3], "ceil_mode": 1}
    model = model_of(
        helper.make_node("AveragePool", ["c"], ["p"], **window),
        helper.make_node("Add", ["x", "p"], ["y"]),
        c=np.arange(10, dtype="float32").reshape(1, 1, 10),
    )
    assert operators(model) == ["Add"]
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert values["p"].tolist() == [[[1, 4, 7, 9]]]
