# SPDX-License-Identifier: Apache-2.0
"""What can be refused before torch and TVM are imported, is."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import tvmattend
from tvmattend.cli.options import model_options
from tvmattend.errors import ModelError, WeightsError
from tvmattend.frontend import ModelRequest


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("model", "source", "name"),
    [
        ("attendnext", "registry", "attendnext"),
        ("attendnext_tiny", "registry", "attendnext_tiny"),
        ("mynets.small:build", "factory", "mynets_small_build"),
        ("mynets:Net.tiny", "factory", "mynets_Net_tiny"),
        ("some/dir/Best Net v2.pt2", "pt2", "Best_Net_v2"),
        ("../net.ONNX", "onnx", "net"),
        ("/x/!!.onnx", "onnx", "model"),
    ],
)
def test_sources_and_directory_names(model: str, source: str, name: str) -> None:
    request = ModelRequest(model)
    assert request.source == source
    assert request.name == name


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        (ModelRequest("attendnex"), "no network is called `attendnex`", "did you mean attendnext"),
        (ModelRequest("resnet"), "no network is called `resnet`", "attendnext_tiny"),
        (ModelRequest(""), "", "attendnext"),
        (ModelRequest("nets.resnet18"), "`nets.resnet18`", "`nets:resnet18`"),
        (ModelRequest("best.pth"), "holds weights", "--weights best.pth"),
        (ModelRequest("gone.onnx"), "there is no file `gone.onnx`", "tvmattend models"),
        (ModelRequest("gone.pt2"), "there is no file `gone.pt2`", "tvmattend models"),
        (ModelRequest("empty.onnx"), "empty", "export"),
        (ModelRequest("folder"), "not a network that can be imported", "factory"),
        (ModelRequest("nowhere_at_all:f"), "no Python module `nowhere_at_all`", "directory"),
        (ModelRequest("nets.py:f"), "names a file", "`nets:f`"),
        (ModelRequest("nets:"), "package.module:factory", "mynets"),
        (ModelRequest("a b:c"), "package.module:factory", "mynets"),
        (ModelRequest("nets:f()"), "package.module:factory", "mynets"),
        (ModelRequest(num_classes=0), "--num-classes 0", "give 1 to 2147483647"),
        (ModelRequest(input_size=-1), "--input-size -1", "give 1 to 2147483647"),
        (ModelRequest(batch=0), "--batch 0", "give 1 to 2147483647"),
        (ModelRequest(seed=-1), "--seed -1", "give 0 to 9223372036854775807"),
        (ModelRequest(input_size=28), "28x28", "--input-size 29"),
        (ModelRequest("net.onnx", weights=Path("w.pt")), "--weights does not go", "leave"),
        (ModelRequest("net.pt2", num_classes=5), "--num-classes does not go", "leave"),
    ],
    ids=str,
)
def test_refused_models(request_: ModelRequest, message: str, hint: str) -> None:
    Path("empty.onnx").touch()
    Path("net.onnx").write_bytes(b"x")
    Path("net.pt2").write_bytes(b"x")
    Path("folder").mkdir()
    with pytest.raises(ModelError) as caught:
        request_.check()
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("path", "message"), [("w.txt", "not a weights file"), ("gone.safetensors", "no weights file")]
)
def test_refused_weights(path: str, message: str) -> None:
    Path("w.txt").touch()
    with pytest.raises(WeightsError, match=message):
        ModelRequest(weights=Path(path)).check()


def test_a_module_of_the_current_directory_is_found_and_not_run() -> None:
    Path("only_here.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    path = list(sys.path)
    ModelRequest("only_here:build", num_classes=3, input_size=32).check()
    assert sys.path == path
    assert "only_here" not in sys.modules


def test_checking_takes_neither_torch_nor_tvm_nor_numpy() -> None:
    code = (
        "import sys; from tvmattend.frontend import ModelRequest as R;"
        "from tvmattend.cli.options import model_options;"
        "R().check(); R('json:dumps').check();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'tvm', 'numpy', 'onnx')))"
    )
    root = Path(tvmattend.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_options_of_the_command_line_make_the_request() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @model_options
    @click.option("--other", default=1)
    def command(request: ModelRequest, other: int) -> None:
        seen.update(request=request, other=other)

    assert CliRunner().invoke(command, []).exit_code == 0
    assert seen == {"request": ModelRequest(), "other": 1}
    words = (
        "--model m:f --weights w.pt --num-classes 3 --input-size 64 --batch 4 --seed 7 --other 2"
    )
    assert CliRunner().invoke(command, words.split()).exit_code == 0
    assert seen == {"request": ModelRequest("m:f", Path("w.pt"), 3, 64, 4, 7), "other": 2}
    text = CliRunner().invoke(command, ["--help"]).output
    assert text.index("--model") < text.index("--weights") < text.index("--seed")
