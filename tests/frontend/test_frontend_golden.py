# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: what is drawn, and networks that do not take it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tvmattend.codegen.building import build
from tvmattend.errors import ModelError
from tvmattend.frontend import import_model
from tvmattend.frontend.golden import golden_vectors
from tvmattend.target import parse_target


def test_golden_vectors_are_the_references() -> None:
    model = import_model("attendnext_tiny")
    pairs = golden_vectors(model, 2)
    assert len(pairs) == 2
    for inputs, outputs in pairs:
        assert [array.shape for array in outputs] == [(1, 10)]
        np.testing.assert_array_equal(outputs[0], model.reference(inputs)[0])


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("log_of_zero", "`log` of `sample_nets_log_of_zero` is not finite", "clamp"),
        (
            "small_table",
            r"drawn inputs \(torch .*\): IndexError: .*sample_nets\.py:\d+",
            "negative too",
        ),
    ],
)
def test_networks_that_do_not_take_them_are_refused_before_the_work(
    name: str, message: str, hint: str, tmp_path: Path
) -> None:
    steps: list[str] = []
    with pytest.raises(ModelError, match=message) as caught:
        build(
            f"sample_nets:{name}",
            parse_target("host"),
            output=tmp_path / "bundle",
            observer=steps.append,
        )
    assert hint in caught.value.hint
    assert steps == [f"importing sample_nets:{name}"]
    assert not (tmp_path / "bundle").exists()


def test_what_onnx_reference_cannot_compute_is_no_fault_of_the_inputs(tmp_path: Path) -> None:
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Pad", ["h", "pads"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", float32, (1, 4, 4))],
        [helper.make_tensor_value_info("y", float32, (1, 4, 4))],
        [numpy_helper.from_array(np.array([0, 1, -1, 0, -1, 1]), "pads")],
    )
    path = tmp_path / "pad.onnx"
    onnx.save(helper.make_model(graph, ir_version=9), path)
    with pytest.raises(ModelError, match=r"ONNX's own reference fails in `Pad` of `pad`") as caught:
        golden_vectors(import_model(str(path)), 1)
    assert "_arraypad" not in str(caught.value)
    assert "express `Pad`" in caught.value.hint


@pytest.mark.parametrize("wrong", [np.zeros((1, 11), "float32"), np.zeros((1, 10))])
def test_outputs_that_are_not_the_networks_are_told(wrong: np.ndarray) -> None:
    model = replace(import_model("attendnext_tiny"), run_reference=lambda _: [wrong])
    with pytest.raises(ModelError, match=r"reference of `attendnext_tiny`.*not float32 \[1, 10\]"):
        golden_vectors(model, 1)
