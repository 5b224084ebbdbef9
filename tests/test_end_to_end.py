# SPDX-License-Identifier: Apache-2.0
"""The whole way: a photograph and a network -> bundle -> the bundle's own wrapper on a device."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from tvmattend.codegen import build
from tvmattend.device.emulated import EmulatedPython
from tvmattend.frontend import ModelRequest, import_model
from tvmattend.models import create
from tvmattend.runtime import load
from tvmattend.runtime.network import preprocess, read_manifest
from tvmattend.target import parse_target

TOLERANCE = 1e-4  # the bundle's own: max|y - ref| / max|ref|

# Runs on the device: nothing but numpy and tvm_ffi can be imported there.
DEVICE_APP = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from tvmattend_runtime import load
net = load(sys.argv[1], threads=2)
pixels = np.load(sys.argv[2])
scores = net(net.preprocess(pixels))
top = [int(index) for index, *_ in net.classify(pixels, top=5)]
print(json.dumps({"scores": np.asarray(scores).ravel().tolist(), "top": top,
                  "errors": net.self_test()}))
"""


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A photograph as HWC bytes (scikit-learn ships it, CC-BY)."""
    return np.asarray(load_sample_image("flower.jpg"))


def device_run(python: EmulatedPython, bundle: Path, pixels: np.ndarray, scratch: Path) -> dict:
    """Copy the bundle elsewhere, as a user would, and run the device app on the emulated board."""
    place = scratch / "on the device"
    shutil.copytree(bundle, place)
    app, image = scratch / "app.py", scratch / "photo.npy"
    app.write_text(DEVICE_APP, encoding="utf-8")
    np.save(image, pixels)
    done = python.run([str(app), str(place), str(image)], timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected(request: ModelRequest, bundle: Path, pixels: np.ndarray) -> np.ndarray:
    """The original network's scores of the photograph."""
    imported = import_model(request)
    x = preprocess(pixels, read_manifest(bundle)["preprocessing"])
    return imported.reference([x])[0].ravel()


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.emulated
def test_photograph_on_the_emulated_cortex_a72(tmp_path, photo, device_python):
    """The acceptance run of the default network: same top five, same logits as PyTorch."""
    request = ModelRequest("attendnext")
    bundle = build(request, parse_target("cortex-a72"), output=tmp_path / "bundle").directory
    found = device_run(device_python, bundle, photo, tmp_path)
    scores = np.array(found["scores"], dtype="float32")
    wanted = expected(request, bundle, photo)
    assert relative(scores, wanted) <= TOLERANCE
    assert found["top"] == np.argsort(-wanted)[:5].tolist()
    assert max(found["errors"]) <= TOLERANCE


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """The tiny network as a .pt2 archive and as an .onnx file."""
    folder = tmp_path_factory.mktemp("sources")
    net = create("attendnext_tiny", num_classes=10, seed=3)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.export.save(torch.export.export(net, (x,)), folder / "tiny.pt2")
    torch.onnx.export(net, (x,), folder / "tiny.onnx", dynamo=True, verbose=False)
    assert onnx.load(folder / "tiny.onnx").graph.node
    return {"pt2": str(folder / "tiny.pt2"), "onnx": str(folder / "tiny.onnx")}


@pytest.mark.parametrize("source", ["pt2", "onnx", "factory"])
@pytest.mark.parametrize("target", ["host", pytest.param("cortex-a72", marks=pytest.mark.emulated)])
def test_every_source_on_both_machines(
    tmp_path, monkeypatch, source, target, sources, photo, device_python
):
    """A .pt2, an .onnx and a factory: the bundle gives the original network's scores."""
    if source == "factory":
        (tmp_path / "mynets.py").write_text(
            "from tvmattend.models import create\n\n\n"
            "def small(num_classes=10):\n"
            "    return create('attendnext_tiny', num_classes=num_classes, seed=3)\n",
            encoding="utf-8",
        )
        monkeypatch.chdir(tmp_path)
        request = ModelRequest("mynets:small", input_size=64)
    else:
        request = ModelRequest(sources[source])
    imported = import_model(request)
    bundle = build(request, parse_target(target), output=tmp_path / "bundle").directory
    (x,) = imported.sample_inputs(1, seed=7)[0]
    wanted = imported.reference([x])[0]
    if target == "host":
        found = load(bundle)(x)
    else:
        found = device_scores(device_python, bundle, x, tmp_path)
    assert relative(np.asarray(found), wanted) <= TOLERANCE
    sys.modules.pop("mynets", None)


def device_scores(python: EmulatedPython, bundle: Path, x: np.ndarray, scratch: Path) -> np.ndarray:
    app = scratch / "scores.py"
    app.write_text(
        "import sys, numpy as np\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from tvmattend_runtime import load\n"
        "np.save(sys.argv[3], load(sys.argv[1])(np.load(sys.argv[2])))\n",
        encoding="utf-8",
    )
    np.save(scratch / "x.npy", x)
    done = python.run([str(app), str(bundle), str(scratch / "x.npy"), str(scratch / "y.npy")])
    assert done.returncode == 0, done.stderr
    return np.load(scratch / "y.npy")


def test_photograph_on_the_host(tmp_path, photo):
    """A JPEG file, a PIL image and an array give the same five classes as PyTorch."""
    request = ModelRequest("attendnext_xs", num_classes=20)
    bundle = build(request, parse_target("host"), output=tmp_path / "bundle").directory
    net = load(bundle)
    wanted = np.argsort(-expected(request, bundle, photo))[:5].tolist()
    file = tmp_path / "photo.png"
    Image.fromarray(photo).save(file)
    for form in (photo, Image.fromarray(photo), str(file)):
        assert [index for index, *_ in net.classify(form, top=5)] == wanted
