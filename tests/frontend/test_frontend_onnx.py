# SPDX-License-Identifier: Apache-2.0
"""`.onnx` files: the same network as its module, folded, with errors that name the node."""

import gc
import hashlib
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from relax_runner import relative_error

from tvmattend.errors import ModelError, UnsupportedOperatorError
from tvmattend.frontend import ModelRequest, TensorSpec, import_model, onnx_graph
from tvmattend.frontend.canonical import operators
from tvmattend.frontend.onnx_reference import evaluator
from tvmattend.models import create

FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                create("attendnext_tiny"),
                (torch.zeros(1, 3, 64, 64),),
                str(path),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    return path


def weights(*shape: int, seed: int = 0, low: float = -1.0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(low, 1.5, shape).astype("float32")


def save(
    path: Path,
    nodes: list[Any],
    arrays: dict[str, np.ndarray[Any, Any]] | None = None,
    shape: tuple[Any, ...] = (1, 3, 8, 8),
    kind: int = FLOAT,
    rank: int = 4,
    check: bool = True,
) -> Path:
    """Write a model `x` -> `y` of the nodes and constants given."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [f"y{axis}" for axis in range(rank)])],
        [numpy_helper.from_array(array, name) for name, array in (arrays or {}).items()],
    )
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(name, 1) for name in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if check:
        onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def node(kind: str, inputs: str, output: str, name: str = "", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=name, **attributes)


def single(path: Path, kind: str, operands: list[Any], **attributes: Any) -> Path:
    """Write a model of one node; None stands for an operand that is left out."""
    names = [f"a{place}" if a is not None else "" for place, a in enumerate(operands)]
    arrays = {name: np.asarray(a) for name, a in zip(names, operands, strict=True) if a is not None}
    return save(path, [helper.make_node(kind, ["x", *names], ["y"], **attributes)], arrays)


def of_opset(version: int, path: Path) -> Path:
    """Say that a model is written in older operators."""
    file = onnx.load(path)
    file.opset_import[0].version = version
    onnx.checker.check_model(file)
    onnx.save(file, path)
    return path


def test_a_file_is_the_network_it_was_made_from(tiny: Path) -> None:
    model, same = import_model(str(tiny)), import_model("attendnext_tiny")
    assert Counter(operators(model.ir_module["main"])) == Counter(operators(same.ir_module["main"]))
    (inputs,) = model.sample_inputs(1)
    np.testing.assert_allclose(
        model.reference(inputs)[0], same.reference(inputs)[0], rtol=1e-4, atol=1e-5
    )
    assert relative_error(model) < 1e-5
    assert model.inputs == (TensorSpec("x", (1, 3, 64, 64), "float32", "NCHW"),)
    assert (model.name, model.classes, model.preprocessing, model.seed) == ("tiny", 10, None, None)
    assert model.reference_name == f"onnx {onnx.__version__} reference"
    assert model.weights_sha256 == hashlib.sha256(tiny.read_bytes()).hexdigest()


def test_weights_in_files_of_their_own_are_in_the_digest(tmp_path: Path) -> None:
    digests = []
    for seed in range(2):
        path = save(tmp_path / "e.onnx", [node("Conv", "x w", "y")], {"w": weights(4, 3, 3, 3)})
        file = onnx.load(path)
        array = weights(4, 3, 3, 3, seed=seed)
        file.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
        (tmp_path / "e.data").unlink(missing_ok=True)
        onnx.save(file, path, save_as_external_data=True, location="e.data", size_threshold=0)
        digests.append(import_model(str(path)).weights_sha256)
        both = path.read_bytes() + (tmp_path / "e.data").read_bytes()
        assert digests[-1] == hashlib.sha256(both).hexdigest()
    assert digests[0] != digests[1]


def test_the_convolutions_are_the_same_calls_as_from_pytorch(tiny: Path) -> None:
    """Or records that were tuned for one would not be found for the other."""

    def calls(name: str) -> Counter[str]:
        main = import_model(name).ir_module["main"]
        found = [binding.value for binding in main.body.blocks[0].bindings]
        return Counter(
            f"{call.attrs} {[str(argument.ty) for argument in call.args]}"
            for call, op in zip(found, operators(main), strict=True)
            if op == "relax.nn.conv2d"
        )

    assert calls(str(tiny)) == calls("attendnext_tiny")


def test_batch_norm_dropout_and_identity_are_gone(tmp_path: Path) -> None:
    path = save(
        tmp_path / "n.onnx",
        [
            node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "c scale bias mean var", "n"),
            node("Dropout", "n", "d"),
            node("Identity", "d", "i"),
            node("Sigmoid", "i", "s"),
            node("Mul", "s i", "m"),
            node("GlobalAveragePool", "m", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f g", "y", transB=1),
        ],
        {
            "w": weights(4, 3, 3, 3),
            "b": weights(4),
            "scale": weights(4, low=0.5),
            "bias": weights(4, seed=1),
            "mean": weights(4, seed=2),
            "var": weights(4, seed=3, low=0.5),
            "g": weights(5, 4),
        },
        rank=2,
    )
    model = import_model(str(path))
    assert operators(model.ir_module["main"]) == [
        "relax.nn.conv2d",
        "relax.add",
        "relax.nn.silu",
        "relax.mean",
        "relax.matmul",
    ]
    assert relative_error(model) < 1e-5
    assert model.classes == 5


def test_symbolic_extents_are_fixed_by_the_options(tmp_path: Path) -> None:
    path = save(
        tmp_path / "d.onnx",
        [node("Conv", "x w", "c"), node("ReduceMean", "c", "y")],
        {"w": weights(4, 3, 3, 3)},
        ("n", 3, "height", None),
    )
    model = import_model(ModelRequest(str(path), batch=2, input_size=9))
    assert model.inputs[0].shape == (2, 3, 9, 9)
    assert relative_error(model) < 1e-5
    with pytest.raises(
        ModelError, match=r"extent 2 of input `x` is not fixed \(height\)"
    ) as caught:
        import_model(str(path))
    assert "--input-size" in caught.value.hint


def test_a_fixed_shape_cannot_be_changed(tmp_path: Path) -> None:
    path = str(save(tmp_path / "f.onnx", [node("Relu", "x", "y")]))
    with pytest.raises(ModelError, match="fixed to 1 at extent 0") as caught:
        import_model(ModelRequest(path, batch=2))
    assert "leave --batch out" in caught.value.hint
    with pytest.raises(ModelError, match="fixed to 8 at extent 2"):
        import_model(ModelRequest(path, input_size=9))


def test_a_fixed_batch_needs_no_option(tmp_path: Path) -> None:
    path = save(tmp_path / "b.onnx", [node("Relu", "x", "y")], shape=(7, 3), rank=2)
    assert import_model(str(path)).inputs[0].shape == (7, 3)


def test_a_symbolic_extent_that_no_option_fixes(tmp_path: Path) -> None:
    path = save(tmp_path / "t.onnx", [node("Relu", "x", "y")], shape=(1, "tokens", 8), rank=3)
    with pytest.raises(ModelError, match=r"extent 1 .* \(tokens\)") as caught:
        import_model(ModelRequest(str(path), input_size=5))
    assert "fixed shape" in caught.value.hint


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("DFT", "x", "y", name="fourier")], "operator `DFT` cannot be imported, node `four"),
        ([node("DFT", "x", "y")], "operator `DFT` cannot be imported, node with output `y`"),
        (
            [node("Relu", "x", "h"), node("FusedThing", "h", "y", "f1", domain="com.acme")],
            "operator `com.acme::FusedThing` cannot be imported, node `f1`",
        ),
    ],
)
def test_unknown_operators_name_the_node(
    nodes: list[Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "u.onnx", nodes, check=False)
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model(str(path))
    assert message in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_node_that_cannot_be_translated_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unsorted = helper.make_node("TopK", ["x", "k"], ["y", "i"], name="best", sorted=0)
    path = save(tmp_path / "k.onnx", [unsorted], {"k": np.array([3])})
    with pytest.raises(UnsupportedOperatorError, match=r"operator `TopK`.*node `best`") as caught:
        import_model(str(path))
    assert "sorted" in caught.value.hint
    del caught
    gc.collect()
    printed = capfd.readouterr()
    assert (printed.out, "Warning" in printed.err) == ("", False)


def test_what_would_not_compile_is_named(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "h"), node("CumSum", "h axis", "y", name="running")]
    path = save(tmp_path / "c.onnx", nodes, {"axis": np.array(1)})
    with pytest.raises(UnsupportedOperatorError, match=r"`CumSum`.*node `running`") as caught:
        import_model(str(path))
    assert "`relax.cumsum`" in caught.value.hint


def test_outputs_that_differ_from_the_graphs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "o.onnx", [node("Conv", "x w", "y")], {"w": weights(4, 3, 3, 3)})
    other = save(tmp_path / "p.onnx", [node("Relu", "x", "y")])
    translated = onnx_graph.to_relax(onnx.load(other), {})
    monkeypatch.setattr(onnx_graph, "to_relax", lambda *_: translated)
    with pytest.raises(UnsupportedOperatorError, match=r"`y`.*\[1, 3, 8, 8\].*\[1, 4, 6, 6\]"):
        import_model(str(path))


def test_control_flow_is_refused(tmp_path: Path) -> None:
    def branch(kind: str) -> Any:
        value = helper.make_tensor_value_info("z", FLOAT, ["a", "b", "c", "d"])
        return helper.make_graph([node(kind, "x", "z")], kind, [], [value])

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        node("If", "positive", "y", then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    path = save(tmp_path / "if.onnx", nodes, {"zero": np.array(0, "float32")})
    with pytest.raises(ModelError, match="control flow"):
        import_model(str(path))


PADS = np.array([0, 0, 1, 2, 0, 0, 3, 1])
SCALES = np.array([1, 1, 2, 3], "float32")


@pytest.mark.parametrize(
    ("kind", "operands", "attributes"),
    [
        ("Clip", [np.float32(0), np.float32(6)], {}),
        ("Clip", [np.float32(-0.2)], {}),
        ("Clip", [np.float32(0.5), np.float32(-0.5)], {}),
        ("Clip", [None, np.float32(0.2)], {}),
        ("Pad", [PADS, np.float32(1.5)], {}),
        ("Pad", [PADS], {"mode": "reflect"}),
        ("Pad", [PADS], {"mode": "edge"}),
        ("Pad", [np.array([1, 2, 0, 1]), None, np.array([3, -2])], {}),
        ("Tile", [np.array([1, 2, 1, 3])], {}),
        ("Conv", [weights(4, 3, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        ("Conv", [weights(4, 3, 3, 2)], {"auto_pad": "SAME_LOWER", "dilations": [2, 3]}),
        ("Conv", [weights(4, 3, 3, 2)], {"auto_pad": "VALID"}),
        ("Resize", [None, SCALES], {"mode": "linear"}),
        ("Resize", [None, None, np.array([1, 3, 5, 20])], {"mode": "cubic"}),
    ],
)
def test_operators_that_become_operators(
    kind: str, operands: list[Any], attributes: dict[str, Any], tmp_path: Path
) -> None:
    model = import_model(str(single(tmp_path / "s.onnx", kind, operands, **attributes)))
    assert relative_error(model) < 1e-5


@pytest.mark.parametrize(
    ("kind", "operands", "attributes", "hint"),
    [
        ("Resize", [None, SCALES], {"mode": "linear", "antialias": 1}, "`antialias`"),
        ("Resize", [None, np.float32([1, 1, 1.25, 1.7])], {}, "8 pixels times 1.7"),
        ("Resize", [None, np.float32([1, 1 / 3, 1, 1])], {}, "3 pixels times 0.333"),
        (
            "Resize",
            [SCALES, SCALES],
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
            "tf_crop_and_resize",
        ),
        (
            "Resize",
            [None, None, np.array([1, 3, 5, 20])],
            {"keep_aspect_ratio_policy": "not_larger"},
            "not_larger",
        ),
        ("Resize", [None, None, np.array([5, 20])], {"axes": [2, 3]}, "`axes`"),
        ("Einsum", [], {"equation": "abcd->abdc"}, "makes a kernel of it"),
    ],
)
def test_operators_that_would_come_out_wrong(
    kind: str, operands: list[Any], attributes: dict[str, Any], hint: str, tmp_path: Path
) -> None:
    path = single(tmp_path / "s.onnx", kind, operands, **attributes)
    with pytest.raises(UnsupportedOperatorError, match=f"`{kind}` cannot be imp") as caught:
        import_model(str(path))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "attributes", "opset", "expected"),
    [
        ("Softmax", {}, 11, lambda x: x.flatten(1).softmax(1)),
        ("Softmax", {"axis": -2}, 9, lambda x: x.flatten(2).softmax(2)),
        ("LogSoftmax", {"axis": 1}, 12, lambda x: x.flatten(1).log_softmax(1)),
        ("Softmax", {"axis": 1}, 13, lambda x: x.softmax(1)),
        (
            "LRN",
            {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0},
            13,
            lambda x: torch.nn.functional.local_response_norm(x, 3, 0.5, 0.6, 2.0),
        ),
    ],
)
def test_the_reference_is_pytorchs(
    kind: str, attributes: dict[str, Any], opset: int, expected: Any, tmp_path: Path
) -> None:
    path = of_opset(opset, single(tmp_path / "s.onnx", kind, [], **attributes))
    model = import_model(str(path))
    (inputs,) = model.sample_inputs(1)
    theirs = expected(torch.from_numpy(inputs[0])).numpy().reshape(inputs[0].shape)
    np.testing.assert_allclose(model.reference(inputs)[0], theirs, rtol=2e-6)
    assert relative_error(model) < 1e-5


def test_operands_of_resize_that_are_empty_are_not_given(tmp_path: Path) -> None:
    """As opset 11 demands."""
    none = np.zeros(0, "float32")
    path = single(tmp_path / "s.onnx", "Resize", [none, none, np.array([1, 3, 16, 24])])
    assert relative_error(import_model(str(of_opset(11, path)))) < 1e-5


def test_upsampling_by_an_operand_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "s.onnx", [node("Upsample", "x s", "y")], {"s": SCALES}, check=False)
    with pytest.raises(UnsupportedOperatorError, match="`Upsample` cannot be imported") as caught:
        import_model(str(of_opset(9, path)))
    assert "its scales are an input" in caught.value.hint


def test_comparisons_of_booleans_are_refused(tmp_path: Path) -> None:
    nodes = [
        node("Greater", "x zero", "b"),
        node("Not", "b", "c"),
        node("Equal", "b c", "e", "both"),
        node("Cast", "e", "y", to=FLOAT),
    ]
    path = save(tmp_path / "s.onnx", nodes, {"zero": np.array(0, "float32")})
    with pytest.raises(UnsupportedOperatorError, match=r"`Equal`.*node `both`") as caught:
        import_model(str(path))
    assert "`relax.equal` takes no booleans" in caught.value.hint


def test_empty_tensors_are_refused(tmp_path: Path) -> None:
    nodes = [node("Slice", "x a a", "s", "none"), node("Concat", "x s", "y", axis=0)]
    path = save(tmp_path / "s.onnx", nodes, {"a": np.array([0])})
    with pytest.raises(UnsupportedOperatorError, match=r"`Slice`.*node `none`") as caught:
        import_model(str(path))
    assert "an extent of its result is 0" in caught.value.hint
    path = save(tmp_path / "i.onnx", [node("Relu", "x", "y")], shape=(1, 0, 8), rank=3)
    with pytest.raises(ModelError, match="extent 1 of input `x` is 0"):
        import_model(str(path))


def test_a_shape_that_depends_on_the_data_is_told(tmp_path: Path) -> None:
    nodes = [node("Compress", "x chosen", "h", "some", axis=1), node("Relu", "h", "y")]
    path = save(tmp_path / "s.onnx", nodes, {"chosen": np.array([True, False, True])})
    with pytest.raises(UnsupportedOperatorError, match=r"`Compress`.*node `some`") as caught:
        import_model(str(path))
    assert "its shape depends on the data" in caught.value.hint


def test_another_shape_than_onnx_says_is_refused_inside_a_graph_too(tmp_path: Path) -> None:
    nodes = [node("Abs", "x", "h", "inner"), node("GlobalAveragePool", "h", "y")]
    path = save(tmp_path / "c.onnx", nodes)
    with pytest.raises(UnsupportedOperatorError, match=r"`Abs`.*`inner`") as caught:
        onnx_graph.to_relax(onnx.load(path), {"h": ((1, 3, 8, 9), "float32")})
    assert "becomes float32 [1, 3, 8, 8], not float32 [1, 3, 8, 9]" in caught.value.hint


CEILED = {"ceil_mode": 1, "kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}


@pytest.mark.parametrize("opset", [13, 22])
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_no_window_of_a_pool_starts_in_padding(kind: str, opset: int, tmp_path: Path) -> None:
    """ONNX's inference counts it before opset 22, here twice, and what is computed from it."""
    nodes = [
        node(kind, "x", "h", **CEILED),  # 5 x 3, not 6 x 3
        node("Relu", "h", "g"),
        node("MaxPool", "g", "p", **CEILED),  # 3 x 2, not 4 x 3
        node("Shape", "p", "s"),
        node("Gather", "s rows", "n"),
        node("Concat", "one n all", "to", axis=0),
        node("Reshape", "p to", "y"),
    ]
    arrays = {"rows": np.array([2]), "one": np.array([1]), "all": np.array([-1])}
    path = of_opset(opset, save(tmp_path / "p.onnx", nodes, arrays, (1, 3, 9, 4), rank=3))
    model = import_model(str(path))
    assert model.outputs[0].shape == (1, 3, 6)
    assert relative_error(model) < 1e-6


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(
    ("kind", "window"),
    [
        ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 3]}),
        ("MaxPool", {"kernel_shape": [1, 1], "strides": [3, 3]}),
        ("AveragePool", {"kernel_shape": [3, 2], "dilations": [2, 3], "count_include_pad": 1}),
        ("LpPool", {"kernel_shape": [3, 2], "strides": [2, 3], "p": 3}),
    ],
)
def test_pools_that_pad_themselves(
    kind: str, window: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    nodes = [node(kind, "x", "y", auto_pad=mode, **window)]
    path = of_opset(19, save(tmp_path / "p.onnx", nodes, check=False))
    assert relative_error(import_model(str(path))) < 1e-6


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_reference_pools_as_pytorch_does(rank: int) -> None:
    """Beside the last window, which goes by ceil_mode, ONNX's own reference shifts what it pads."""
    random = np.random.default_rng(rank)

    def drawn(low: int, high: Any) -> list[int]:
        return random.integers(low, high, rank, endpoint=True).tolist()

    for _ in range(200):
        kernel, strides, ceil = drawn(1, 4), drawn(1, 4), bool(random.integers(2))
        pads = drawn(0, np.array(kernel) // 2)
        x = torch.from_numpy(random.normal(size=[2, 3, *drawn(10, 14)]).astype("float32"))
        window = {"kernel_shape": kernel, "strides": strides, "pads": pads * 2, "ceil_mode": ceil}
        dilations, count = drawn(1, 3), bool(random.integers(2))
        pool, average = (
            getattr(torch.nn.functional, f"{name}_pool{rank}d") for name in ("max", "avg")
        )
        for kind, rest, expected in (
            ("Max", {"dilations": dilations}, pool(x, kernel, strides, pads, dilations, ceil)),
            (
                "Average",
                {"count_include_pad": count},
                average(x, kernel, strides, pads, ceil, count),
            ),
        ):
            graph = helper.make_graph(
                [node(f"{kind}Pool", "x", "y", **window, **rest)],
                "graph",
                [helper.make_tensor_value_info("x", FLOAT, x.shape)],
                [helper.make_tensor_value_info("y", FLOAT, None)],
            )
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
            (found,) = evaluator(model, 13).run(None, {"x": x.numpy()})
            assert (found.shape, found.dtype) == (tuple(expected.shape), np.float32)
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_reference_of_a_p_norm_is_pytorchs(rank: int, tmp_path: Path) -> None:
    shape = (1, 3, 13, 14)[: rank + 2]
    window = {"kernel_shape": [4] * rank, "strides": [3] * rank, "ceil_mode": 1, "p": 2}
    path = save(tmp_path / "p.onnx", [node("LpPool", "x", "y", **window)], {}, shape, rank=rank + 2)
    model = import_model(str(path))
    (inputs,) = model.sample_inputs(1)
    pool = getattr(torch.nn.functional, f"lp_pool{rank}d")
    expected = pool(torch.from_numpy(inputs[0]), 2, 4, 3, ceil_mode=True).numpy()
    np.testing.assert_allclose(model.reference(inputs)[0], expected, rtol=1e-5)
    assert relative_error(model) < 1e-6


def test_relu6_is_clip_as_from_pytorch(tmp_path: Path) -> None:
    """What PyTorch exports of a MobileNet."""
    path = tmp_path / "m.onnx"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU6()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), str(path), dynamo=False)
    model = import_model(str(path))
    assert operators(model.ir_module["main"]) == ["relax.nn.conv2d", "relax.add", "relax.clip"]
    assert relative_error(model) < 1e-5


def test_dropout_of_training_is_refused(tmp_path: Path) -> None:
    arrays = {"ratio": np.array(0.5, "float32"), "training": np.array(True)}
    path = save(tmp_path / "t.onnx", [node("Dropout", "x ratio training", "y", "drop")], arrays)
    with pytest.raises(ModelError, match="`drop`") as caught:
        import_model(str(path))
    assert ".eval()" in caught.value.hint


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_precisions_are_refused(kind: int, tmp_path: Path) -> None:
    path = save(tmp_path / "p.onnx", [node("Relu", "x", "y")], kind=kind)
    with pytest.raises(ModelError, match=r"float16|float64"):
        import_model(str(path))


def test_names_that_are_no_identifiers_raise_no_warning(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["1.input/x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("1.input/x", FLOAT, (1, 3, 4, 4))],
        [helper.make_tensor_value_info("y", FLOAT, (1, 3, 4, 4))],
    )
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "names.onnx")
    model = import_model(str(tmp_path / "names.onnx"))
    assert relative_error(model) == 0


def test_weights_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    """As IR versions before 4 demand."""
    array = weights(3, 1, 1)
    graph = helper.make_graph(
        [node("Add", "x w", "y")],
        "graph",
        [
            helper.make_tensor_value_info("x", FLOAT, (1, 3, 4, 4)),
            helper.make_tensor_value_info("w", FLOAT, (3, 1, 1)),
        ],
        [helper.make_tensor_value_info("y", FLOAT, (1, 3, 4, 4))],
        [numpy_helper.from_array(array, "w")],
    )
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "old.onnx")
    model = import_model(str(tmp_path / "old.onnx"))
    assert len(model.inputs) == 1
    assert relative_error(model) < 1e-6


@pytest.mark.parametrize("content", [b"hello world", b"\x08\x07", b"\xff" * 400])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx") as caught:
        import_model(str(tmp_path / "bad.onnx"))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_graph_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Add", "x nowhere", "y")], check=False)
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        import_model(str(path))
