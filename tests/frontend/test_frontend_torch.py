# SPDX-License-Identifier: Apache-2.0
"""PyTorch networks, of the registry and of factories: structure, numbers, refusals."""

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_nets
import torch
from relax_runner import relative_error, run_relax
from tvm import relax

from tvmattend.errors import ModelError, UnsupportedOperatorError
from tvmattend.frontend import ImportedModel, ModelRequest, TensorSpec, import_model, importing
from tvmattend.frontend.canonical import canonicalise, operators
from tvmattend.frontend.torch_graph import export, to_relax
from tvmattend.models import Condenser, create, layers, lookup
from tvmattend.preprocessing import Preprocessing

ALLOWED = {
    "relax.nn.conv2d",
    "relax.nn.avg_pool2d",
    "relax.nn.max_pool2d",
    "relax.nn.softmax",
    "relax.nn.silu",
    "relax.sigmoid",
    "relax.add",
    "relax.multiply",
    "relax.mean",
    "relax.matmul",
    "relax.image.resize2d",
}
NAMES = ["attendnext", "attendnext_xs", "attendnext_deep", "attendnext_tiny"]


@pytest.mark.parametrize("name", [*NAMES, "attendnext_tiny_condenser"])
def test_structure_and_numbers(name: str) -> None:
    model = import_model(name)
    main = model.ir_module["main"]
    counts = Counter(operators(main))
    assert set(counts) <= ALLOWED
    assert counts["relax.nn.conv2d"] == len(layers(lookup(name))) - 1
    assert counts["relax.matmul"] == counts["relax.mean"] == 1
    gates = "relax.sigmoid" if name.endswith("condenser") else "relax.nn.softmax"
    assert counts[gates] == 4
    assert [type(block) for block in main.body.blocks] == [relax.DataflowBlock]
    assert len(main.params) == 1
    assert relative_error(model) < 1e-5


def test_softmax_is_over_channels_and_pools_are_shared() -> None:
    main = import_model("attendnext_tiny").ir_module["main"]
    calls = [binding.value for binding in main.body.blocks[0].bindings]
    named = [(op, call) for op, call in zip(operators(main), calls, strict=True)]
    assert all(int(call.attrs["axis"]) == 1 for op, call in named if op == "relax.nn.softmax")
    # Stem, one for both branches of stage 2, and two in each bottleneck (behind the reduction).
    assert sum(op == "relax.nn.avg_pool2d" for op, _ in named) == 6


@pytest.mark.parametrize(
    ("name", "batch", "size"),
    [
        ("attendnext_tiny", 4, 64),
        ("attendnext_tiny", 1, 75),
        ("attendnext_tiny_condenser", 4, 97),
    ],
)
def test_batches_and_odd_sizes(name: str, batch: int, size: int) -> None:
    model = import_model(ModelRequest(name, batch=batch, input_size=size, num_classes=7))
    assert model.inputs == (TensorSpec("x", (batch, 3, size, size), "float32", "NCHW"),)
    assert model.outputs[0].shape == (batch, 7)
    assert model.classes == 7
    assert relative_error(model) < 1e-5


@pytest.mark.parametrize(
    "condenser",
    [
        Condenser(condense="max", gate="sigmoid", residual=True),
        Condenser(expand="nearest", scale=True),
    ],
    ids=str,
)
def test_flavours_between_the_two(condenser: Condenser) -> None:
    network = create(replace(lookup("attendnext_tiny"), condenser=condenser))
    x = torch.randn(1, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    module, _ = canonicalise(*to_relax(export(network, (x,), "flavour")))
    assert set(operators(module["main"])) <= ALLOWED
    with torch.no_grad():
        expected = network(x).numpy()
    (actual,) = run_relax(module, [x.numpy()])
    assert float(np.abs(actual - expected).max() / np.abs(expected).max()) < 1e-5


def test_convolutions_are_named_after_their_modules() -> None:
    model = import_model("attendnext_tiny")
    main = model.ir_module["main"]
    paths = []
    for binding, op in zip(main.body.blocks[0].bindings, operators(main), strict=True):
        if op in {"relax.nn.conv2d", "relax.matmul"}:
            path = model.module_paths[binding.var.name]
            assert binding.var.name == path.replace(".", "_")
            paths.append(path)
    assert sorted(paths) == sorted(layer.path for layer in layers(lookup("attendnext_tiny")))


def test_what_a_bundle_must_know() -> None:
    model = import_model(ModelRequest("attendnext_tiny", seed=3))
    assert model.name == "attendnext_tiny"
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert model.preprocessing == Preprocessing(73, 64, *imagenet, 1 / 255, "RGB", "bilinear")
    assert (model.seed, model.weights, model.weights_sha256) == (3, "seed 3", None)
    assert model.reference_name == f"torch {torch.__version__}"
    assert "conv2d" not in repr(model)


def test_the_default_is_attendnext_as_torchvision_evaluates() -> None:
    request = ModelRequest()
    assert request.model == "attendnext"
    recipe = import_model(request).preprocessing
    assert recipe is not None
    assert (recipe.resize, recipe.crop) == (256, 224)


def test_sample_inputs_are_seeded_and_differ() -> None:
    model = import_model(ModelRequest("attendnext_tiny", batch=2))
    first, second = model.sample_inputs(2, seed=5)
    (again,) = model.sample_inputs(1, seed=5)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], second[0])
    assert first[0].dtype == np.float32
    assert first[0].shape == (2, 3, 64, 64)
    assert not np.allclose(model.reference(first)[0], model.reference(second)[0], rtol=1e-2)


def test_seeds_change_the_weights() -> None:
    first, other = (
        import_model("attendnext_tiny"),
        import_model(ModelRequest("attendnext_tiny", seed=1)),
    )
    (inputs,) = first.sample_inputs(1)
    assert not np.allclose(first.reference(inputs)[0], other.reference(inputs)[0], rtol=0.1)


FACTORIES = {
    "depthwise_separable": ["relax.nn.conv2d"] * 3,
    "pre_activation": ["relax.nn.conv2d"],
    "shared_convolution": ["relax.nn.conv2d"],
    "linear_norm": [],
    "pools": [],
    "pools_of_no_stride": [],
    "upsampling": [],
    "rounded_upsampling": [],
    "indices": [],
    "several_indices": [],
    "scaled_operands": [],
    "bounds": [],
    "integers_beside_floats": [],
    "steps": [],
    "statistics": [],
    "one_hot": [],
    "integer_comparisons": [],
    "booleans": [],
    "extremes": [],
    "norms": ["relax.nn.conv2d"],
    "Nested.make": ["relax.nn.conv2d"],
    "splits_of_one_part": [],
    "returned_parameter": ["relax.nn.conv2d"],
    "INSTANCE": ["relax.nn.conv2d"],
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("batch", [1, 2])
def test_factories(name: str, batch: int) -> None:
    model = import_model(ModelRequest(f"sample_nets:{name}", batch=batch))
    assert model.name == f"sample_nets_{name.replace('.', '_')}"
    assert model.preprocessing is None
    assert model.inputs[0].shape == (batch, 3, 16, 16)
    found = operators(model.ir_module["main"])
    assert [op for op in found if op == "relax.nn.conv2d"] == FACTORIES[name]
    assert not [op for op in found if "batch_norm" in op or "dropout" in op]
    assert relative_error(model) < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["instance_norm", "group_norm", "layer_norm"])
def test_what_is_normalised_may_be_all_alike_or_far_from_zero(name: str, batch: int) -> None:
    """White images, and maps whose mean is large beside their deviations."""
    request = ModelRequest(f"sample_nets:{name}", batch=batch)
    model = import_model(request)
    exact = getattr(sample_nets, name)().eval().double()
    white = np.full((batch, 3, 16, 16), 2.6, "float32")
    spotted = np.full((batch, 3, 16, 16), 200.3, "float32")
    spotted[:, :, 3, 5] += 1
    noise = np.random.default_rng(0).standard_normal(white.shape)
    for x in (white, spotted, (noise + 1000).astype("float32")):
        with torch.no_grad():
            wanted = exact(torch.from_numpy(x).double()).numpy()
        (found,) = run_relax(model.ir_module, [x])
        assert np.abs(found - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())


def test_outputs_keep_their_order() -> None:
    model = import_model("sample_nets:pools")
    assert [spec.shape for spec in model.outputs] == [
        (1, 3, 8, 8),
        (1, 3, 9, 9),
        (1, 3, 9, 9),
        (1, 3, 3, 5),
    ]
    assert model.classes is None


def test_factory_takes_classes_size_and_seed() -> None:
    request = ModelRequest("sample_nets:depthwise_separable", num_classes=3, input_size=21, batch=2)
    model = import_model(request)
    assert model.inputs[0].shape == (2, 3, 21, 21)
    assert model.outputs[0].shape == (2, 3)
    (inputs,) = model.sample_inputs(1)
    again = import_model(request).reference(inputs)[0]
    other = import_model(replace(request, seed=1)).reference(inputs)[0]
    assert np.array_equal(model.reference(inputs)[0], again)
    assert not np.array_equal(model.reference(inputs)[0], other)


def test_importing_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    import_model("sample_nets:shared_convolution")
    assert torch.equal(torch.rand(1), expected)


def test_input_shape_of_the_module_counts() -> None:
    model = import_model(ModelRequest("sample_nets:gray", batch=2))
    assert model.inputs[0].shape == (2, 1, 12, 20)


def test_a_factory_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_a_user").mkdir()
    code = "import torch\nmake = lambda **options: torch.nn.Conv2d(3, options['num_classes'], 3)\n"
    (tmp_path / "nets_of_a_user" / "small.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    model = import_model(ModelRequest("nets_of_a_user.small:make", num_classes=2))
    assert model.inputs[0].shape == (1, 3, 224, 224)
    assert model.outputs[0].shape == (1, 2, 222, 222)


@pytest.mark.parametrize(
    ("name", "error", "message", "hint"),
    [
        ("fft", UnsupportedOperatorError, "torch.fft.fft2(x).real", "does not know"),
        ("cumsum", UnsupportedOperatorError, "`aten::cumsum`", "`relax.cumsum`"),
        ("cumprod", UnsupportedOperatorError, "`aten::cumprod`", "`relax.cumprod`"),
        ("sort", UnsupportedOperatorError, "`aten::sort`", "cannot be compiled"),
        ("topk", UnsupportedOperatorError, "`aten::topk`", "`relax.topk`"),
        ("grid_sample", UnsupportedOperatorError, "grid_sampler_2d`", "cannot be compiled"),
        ("plain_group_norm", UnsupportedOperatorError, "group_norm`", "with these arguments"),
        ("total", UnsupportedOperatorError, "`aten::max`", "to a number"),
        ("odd_divisor", UnsupportedOperatorError, "avg_pool2d", "divisor_override"),
        ("odd_divisor_3d", UnsupportedOperatorError, "avg_pool3d", "divisor_override"),
        ("antialias", UnsupportedOperatorError, "upsample_bilinear2d_aa", "does not know"),
        ("corners_of_one_pixel", UnsupportedOperatorError, "upsample_bilinear2d", "corners"),
        (
            "product_of_integers",
            UnsupportedOperatorError,
            "`aten::prod.dim_int`",
            "becomes int32 [1, 16, 16], not int64 [1, 16, 16]",
        ),
        (
            "floored_by_a_half",
            UnsupportedOperatorError,
            "`aten::div.Tensor_mode`",
            "2.5) uses datatype int32 on the LHS (Type of int32 [1, 3, 16, 16]), and",
        ),
        ("boolean_maximum", UnsupportedOperatorError, "`aten::amax`", "`relax.max` takes no bool"),
        (
            "sigmoid_of_integers",
            UnsupportedOperatorError,
            "`aten::sigmoid`",
            "`relax.sigmoid` requires the input tensor to have float dtype",
        ),
        ("uneven_windows", UnsupportedOperatorError, "adaptive_max_pool2d", "not of one size"),
        ("indices_of_a_pool", UnsupportedOperatorError, "`getitem`", "not int64"),
        ("exponential", ModelError, "`exponential`", "same output"),
        ("fractional_bilinear", UnsupportedOperatorError, "upsample_bilinear2d", "1.7"),
        ("boolean_index", UnsupportedOperatorError, "aten::index", ""),
        ("data_dependent", ModelError, "data-dependent expression", "one path"),
        ("functional_dropout", ModelError, "`dropout` runs in training mode", ".eval()"),
        ("no_statistics", ModelError, "`batch_norm` has no running stat", "track_running_stats"),
        ("empty_slice", UnsupportedOperatorError, "`aten::slice.Tensor`", "its result is 0"),
        ("output_of_none", ModelError, "output 1 of the network is `None`", "tensors only"),
        ("output_of_a_number", ModelError, "output 1 of the network is `16`", "tensors only"),
        ("counter", ModelError, "changes `count` in place", ".eval()"),
        ("changes_input", ModelError, "changes `x` in place", ".eval()"),
        ("random", ModelError, "`randn_like`", "same output"),
        ("double", ModelError, "float64", ".float()"),
        ("casts", ModelError, "float64", ".float()"),
        ("identity", ModelError, "computes nothing", ""),
        ("broken_forward", ModelError, "missing", ""),
        ("bad_shape", ModelError, "'large'", "(channels, height, width)"),
        ("raises", ModelError, "RuntimeError: no weights here", "no arguments"),
        ("needs_argument", ModelError, "width", "no arguments"),
        ("gives_number", ModelError, "gave a int, not an nn.Module", "network"),
        ("NUMBER", ModelError, "is a int, not a callable", "function or class"),
        ("missing", ModelError, "has no `missing`", "depthwise_separable"),
        ("pool", ModelError, "has no `pool`", "did you mean pools"),
        ("Nested.missing", ModelError, "has no `Nested.missing`", "make"),
    ],
)
def test_refused_networks(
    name: str, error: type[Exception], message: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error) as caught:
        import_model(f"sample_nets:{name}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hint in getattr(caught.value, "hint", "")
    assert "Check failed" not in getattr(caught.value, "hint", "")
    assert "R." not in getattr(caught.value, "hint", "")
    del caught
    gc.collect()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Warning" not in printed.err


@pytest.mark.parametrize(
    "name", ["fft", "cumsum", "grid_sample", "data_dependent", "broken_forward", "raises"]
)
def test_the_users_line_is_named(name: str) -> None:
    with pytest.raises((ModelError, UnsupportedOperatorError), match=r"sample_nets\.py:\d+"):
        import_model(f"sample_nets:{name}")


@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_outputs_that_differ_from_the_networks_are_refused(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a translation that computes something else."""

    def another(module: Any, *rest: Any) -> Any:
        builder = relax.BlockBuilder()
        x = module["main"].params[0]
        with builder.function("main", [x]):
            with builder.dataflow():
                y = relax.op.astype(x, "int32") if change == "dtype" else relax.op.mean(x, 1)
                output = builder.emit_output(builder.emit(y))
            builder.emit_func_output(output)
        return canonicalise(builder.get(), {})

    monkeypatch.setattr(importing, "canonicalise", another)
    found = {"shape": "float32 [1, 16, 16]", "dtype": "int32 [1, 3, 16, 16]"}[change]
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model("sample_nets:relu")
    assert f"is {found} after the import, but float32 [1, 3, 16, 16] in" in str(caught.value)


def test_a_refused_graph_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError):
        import_model("sample_nets:data_dependent")
    assert "def forward" not in capfd.readouterr().err


def test_ctrl_c_that_a_factory_swallows_ends_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import signal, torch\n"
        "def build():\n"
        "    try:\n        signal.raise_signal(signal.SIGINT)\n"
        "    except BaseException:\n        return torch.nn.ReLU()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        import_model("stubborn:build")


def test_a_factory_without_classes_refuses_them() -> None:
    with pytest.raises(ModelError, match="takes no `num_classes`"):
        import_model(ModelRequest("sample_nets:pools", num_classes=4))


def test_a_module_that_fails_at_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_at_import.py").write_text("x = 1\ny = x.z\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"'int' object has no attribute 'z'.*import\.py:2"):
        import_model("fails_at_import:make")
    with pytest.raises(ModelError, match=r"cannot import `sample_nets\.part`"):
        import_model("sample_nets.part:make")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\ndef build():\n    sys.exit(3)\n", r"failed: SystemExit: 3, at .*own\.py:3"),
        ("import sys\nsys.exit()\n", r"cannot import `\w+`: SystemExit: .*, at .*own\.py:2"),
        ("x = 1\ndef build(:\n", r"cannot import `\w+`: SyntaxError: .*, at /.*own\.py:2"),
        ("import nowhere_at_all\n", r"ModuleNotFoundError: .*, at /.*own\.py:1"),
        ("def other(): ...\n", r"`\w+own` \(/.*own\.py\) has no `build`"),
    ],
)
def test_a_module_that_ends_or_cannot_be_read_is_told_with_its_file(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"n{abs(hash(code))}_own"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        import_model(f"{name}:build")


def test_what_a_network_prints_is_no_output_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import torch\nprint('imported')\n"
        "class Net(torch.nn.ReLU):\n"
        "    def forward(self, x):\n        print('computed')\n        return super().forward(x)\n"
        "def build():\n    print('made')\n    return Net()\n"
    )
    (tmp_path / "talkative.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    model = import_model(ModelRequest("talkative:build", input_size=8))
    model.reference(*model.sample_inputs())
    told = capsys.readouterr()
    assert told.out == ""
    assert [word in told.err for word in ("imported", "made", "computed")] == [True] * 3


def test_an_input_that_the_network_cannot_take() -> None:
    with pytest.raises(ModelError, match="torch\\.export cannot export"):
        import_model(ModelRequest("sample_nets:shared_convolution", input_size=2))


def test_imported_models_are_values() -> None:
    model = import_model("sample_nets:gray")
    assert isinstance(model, ImportedModel)
    with pytest.raises(AttributeError):
        model.name = "other"  # type: ignore[misc]


def test_an_input_that_no_memory_holds_is_told() -> None:
    with pytest.raises(ModelError, match=r"100000000 x 3 x 64 x 64 .* does not fit into memory"):
        import_model(ModelRequest("attendnext_tiny", batch=100_000_000))
    with pytest.raises(ModelError, match=r"2147483647 x 3 x .* does not fit into memory"):
        import_model(ModelRequest("attendnext_tiny", batch=2**31 - 1, input_size=2**31 - 1))


def test_what_else_pytorch_says_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such backend")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(RuntimeError, match="no such backend"):
        import_model("attendnext_tiny")
