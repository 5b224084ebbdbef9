# SPDX-License-Identifier: Apache-2.0
"""`.pt2` archives: the same network as its module, and nothing that runs code."""

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_nets
import torch
from relax_runner import relative_error
from torch import nn
from torch.export import Dim

from tvmattend.errors import ModelError, UnsupportedOperatorError
from tvmattend.frontend import ModelRequest, import_model
from tvmattend.frontend.canonical import operators
from tvmattend.models import create


def save(
    module: nn.Module, path: Path, *inputs: torch.Tensor, dynamic: Any = None, train: bool = False
) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            module.train() if train else module.eval(), inputs, dynamic_shapes=dynamic
        )
        torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "tiny net.pt2"
    return save(create("attendnext_tiny"), path, torch.zeros(1, 3, 64, 64))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    return save(nn.Conv2d(3, 4, 3), path, torch.zeros(1, 3, 8, 8))


def test_an_archive_is_the_network_it_was_made_from(tiny: Path) -> None:
    model, same = import_model(str(tiny)), import_model("attendnext_tiny")
    assert operators(model.ir_module["main"]) == operators(same.ir_module["main"])
    assert model.module_paths == same.module_paths
    (inputs,) = model.sample_inputs(1)
    np.testing.assert_allclose(model.reference(inputs)[0], same.reference(inputs)[0], rtol=1e-5)
    assert relative_error(model) < 1e-5
    assert model.name == "tiny_net"
    assert (model.classes, model.preprocessing, model.seed) == (10, None, None)
    assert model.weights == "`tiny net.pt2`"
    assert model.weights_sha256 == hashlib.sha256(tiny.read_bytes()).hexdigest()


def test_a_fixed_shape_cannot_be_changed(small: Path) -> None:
    with pytest.raises(ModelError, match="fixed to 1 at extent 0") as caught:
        import_model(ModelRequest(str(small), batch=2))
    assert "leave --batch out" in caught.value.hint
    with pytest.raises(ModelError, match="fixed to 8 at extent 2") as caught:
        import_model(ModelRequest(str(small), input_size=9))
    assert "leave --input-size out" in caught.value.hint
    assert import_model(ModelRequest(str(small), input_size=8)).inputs[0].shape == (1, 3, 8, 8)


def test_an_empty_input_is_refused(tmp_path: Path) -> None:
    path = save(nn.ReLU(), tmp_path / "e.pt2", torch.zeros(0, 3))
    with pytest.raises(ModelError, match=r"extent 0 of input `.*` is 0") as caught:
        import_model(str(path))
    assert "hold numbers" in caught.value.hint


def test_symbolic_extents_are_fixed_by_the_options(tmp_path: Path) -> None:
    net = sample_nets.depthwise_separable()
    extents = {"x": {0: Dim("batch"), 2: Dim("height", min=8), 3: Dim("width", min=8)}}
    path = save(net, tmp_path / "d.pt2", torch.zeros(2, 3, 16, 16), dynamic=extents)
    model = import_model(ModelRequest(str(path), batch=3, input_size=20))
    assert model.inputs[0].shape == (3, 3, 20, 20)
    assert relative_error(model) < 1e-5
    with pytest.raises(ModelError, match="extent 2 of input `x` is not fixed") as caught:
        import_model(str(path))
    assert "--input-size" in caught.value.hint
    with pytest.raises(ModelError, match=r"does not take \[1, 3, 4, 4\]"):
        import_model(ModelRequest(str(path), input_size=4))


def test_inputs_of_other_leading_extents_keep_them(tmp_path: Path) -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) @ y

    path = tmp_path / "p.pt2"
    inputs = (torch.zeros(1, 5, 8, 8), torch.zeros(5, 3))
    torch.export.save(torch.export.export(Product().eval(), inputs), path)
    model = import_model(str(path))
    assert [spec.shape for spec in model.inputs] == [(1, 5, 8, 8), (5, 3)]
    assert relative_error(model) < 1e-5
    with pytest.raises(ModelError, match="fixed to 5 at extent 0 of `y`, not 1") as caught:
        import_model(ModelRequest(str(path), batch=1))
    assert "leave --batch out" in caught.value.hint


def test_an_archive_of_training_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
    path = save(module, tmp_path / "t.pt2", torch.zeros(1, 3, 8, 8), train=True)
    with pytest.raises(ModelError, match="`dropout` runs in training mode") as caught:
        import_model(str(path))
    assert ".eval()" in caught.value.hint
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = save(module, tmp_path / "b.pt2", torch.zeros(2, 3, 8, 8), train=True)
    with pytest.raises(ModelError, match="training"):
        import_model(ModelRequest(str(path), batch=2))


def test_an_unknown_operator_names_the_line_it_was_written_at(tmp_path: Path) -> None:
    path = save(sample_nets.fft(), tmp_path / "fft.pt2", torch.zeros(1, 3, 8, 8))
    with pytest.raises(UnsupportedOperatorError, match=r"sample_nets\.py:\d+: return torch\.fft"):
        import_model(str(path))


def test_double_precision_is_refused(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 4, 3).double()
    path = save(module, tmp_path / "d.pt2", torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(ModelError, match="float64"):
        import_model(str(path))


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Copy an archive through `change(name, content)`; None leaves an entry out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_pickles_of_sample_inputs_are_not_run(small: Path, tmp_path: Path) -> None:
    """PyTorch falls back to `weights_only=False` when the safe reading fails."""
    mark = tmp_path / "it-ran"
    torch.save((Trap(mark),), tmp_path / "trap")
    trap = (tmp_path / "trap").read_bytes()
    path = rewrite(
        small,
        tmp_path / "evil.pt2",
        lambda name, content: trap if name.endswith("sample_inputs/model.pt") else content,
    )
    with pytest.raises(ModelError, match="holds pickled Python objects"):
        import_model(str(path))
    assert not mark.exists()


def test_pickled_weights_are_not_run(small: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            table = json.loads(content)
            next(iter(table["config"].values()))["use_pickle"] = True
            return json.dumps(table).encode()
        return pickle.dumps(Trap(mark)) if name.endswith("weights/weight_0") else content

    with pytest.raises(ModelError, match="holds pickled tensors"):
        import_model(str(rewrite(small, tmp_path / "evil.pt2", change)))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["custom_obj_0", "opaque_obj_0"])
def test_custom_objects_are_refused(kind: str, small: Path, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("constants_config.json"):
            entry = {"path_name": kind, "is_param": False, "use_pickle": False, "tensor_meta": None}
            return json.dumps({"config": {"object": entry}}).encode()
        return content

    with pytest.raises(ModelError, match="holds pickled Python objects"):
        import_model(str(rewrite(small, tmp_path / "evil.pt2", change)))


def test_compiled_libraries_are_refused(small: Path, tmp_path: Path) -> None:
    path = rewrite(small, tmp_path / "evil.pt2", lambda _, content: content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("evil/data/aotinductor/model/a.so", b"\x7fELF")
    with pytest.raises(ModelError, match="holds a compiled library"):
        import_model(str(path))


@pytest.mark.parametrize("text", ["__import__('os')", "().__class__", "lambda: 0", "exec(s0)"])
def test_expressions_that_are_no_shapes_are_refused(text: str, small: Path, tmp_path: Path) -> None:
    """SymPy evaluates them as Python."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        size = {"as_expr": {"expr_str": text, "hint": {"as_int": 8}}}
        return content.replace(b'{"as_int": 8}', json.dumps(size).encode(), 1)

    path = rewrite(small, tmp_path / "evil.pt2", change)
    assert path.read_bytes() != small.read_bytes()
    with pytest.raises(ModelError, match="holds the expression"):
        import_model(str(path))


def test_guards_are_not_run(small: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        program["guards_code"] = [f"__import__('pathlib').Path({str(mark)!r}).touch() is None"]
        return json.dumps(program).encode()

    model = import_model(str(rewrite(small, tmp_path / "guarded.pt2", change)))
    model.reference(model.sample_inputs(1)[0])
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(small: Path, tmp_path: Path) -> None:
    path = rewrite(small, tmp_path / "evil.pt2", lambda _, content: content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0].upper(), b"other")
    with pytest.raises(ModelError, match="two entries of one name"):
        import_model(str(path))


@pytest.mark.parametrize("damage", ["noise", "cut", "other zip", "no graph"])
def test_damaged_archives(damage: str, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt2"
    if damage == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif damage == "cut":
        path.write_bytes(small.read_bytes()[:-300])
    elif damage == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    else:
        rewrite(small, path, lambda n, c: None if n.endswith("models/model.json") else c)
    with pytest.raises(ModelError, match="cannot read") as caught:
        import_model(str(path))
    assert "\n" not in str(caught.value)
    assert "torch.export.save" in caught.value.hint
