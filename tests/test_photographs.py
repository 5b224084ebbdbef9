# SPDX-License-Identifier: Apache-2.0
"""What a user says of photographs and classes becomes a recipe and names, or one line."""

import json

import numpy as np
import pytest
import torch

from tvmattend.cli.main import main
from tvmattend.errors import InputError
from tvmattend.preprocessing import MEAN, Photographs, Preprocessing, read_labels
from tvmattend.runtime import TensorSpec, load

OWN = """
from torch import nn

def net():
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    network = nn.Sequential(*layers)
    network.input_shape = (3, 24, 24)
    return network
"""


def tensor(*shape, dtype="float32"):
    return TensorSpec("x", shape, dtype, "NCHW")


def test_the_usual_recipe_is_imagenets_in_proportion():
    wanted = Preprocessing(256, 224, MEAN, (0.229, 0.224, 0.225), 1 / 255, "RGB", "bilinear")
    assert Photographs().recipe([tensor(1, 3, 224, 224)]) == wanted
    own = Photographs((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 64)
    assert own.recipe([tensor(2, 3, 64, 64)]) == Preprocessing(64, 64, own.mean, own.std)


@pytest.mark.parametrize(
    ("inputs", "photographs", "said"),
    [
        ([tensor(1, 1, 8, 8)], Photographs(), r"takes float32 \[1, 1, 8, 8\]"),
        ([tensor(1, 3, 8, 9)], Photographs(), r"takes float32 \[1, 3, 8, 9\]"),
        ([tensor(1, 3)], Photographs(), r"takes float32 \[1, 3\]"),
        ([tensor(1, 3, 8, 8, dtype="int64")], Photographs(), "takes int64"),
        ([tensor(1, 3, 8, 8)] * 2, Photographs(), "8], float32"),
        ([tensor(1, 3, 8, 8)], Photographs(resize=7), "--resize 7 is less than the 8 pixels"),
        ([tensor(1, 3, 8, 8)], Photographs(std=(1.0, 0.0, 1.0)), "--std 0"),
    ],
)
def test_what_is_no_recipe_is_refused(inputs, photographs, said):
    with pytest.raises(InputError, match=said):
        photographs.recipe(inputs)


def test_labels_are_one_a_line(tmp_path):
    place = tmp_path / "labels.txt"
    place.write_text("cat\n hot dog \nÄhre\n", encoding="utf-8")
    assert read_labels(place) == ("cat", "hot dog", "Ähre")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"", "empty"), (b"a\n\nb\n", "empty"), (b"\xff\xfe", "utf-8")],
)
def test_what_are_no_labels_is_refused(tmp_path, content, said):
    place = tmp_path / "labels.txt"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_labels(place)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network of one's own, and a place to build in."""
    (tmp_path / "own_photographs.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return ["build", "--target", "host", "--threads", "1", "--model", "own_photographs:net"]


def test_a_bundle_of_ones_own_network_names_what_a_photograph_shows(own, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    bundle = tmp_path / "bundle"
    options = ["--mean", "0.5", "--std", "0.25,0.5,0.25", "--resize", "30", "--labels"]
    with pytest.raises(SystemExit) as left:
        main([*own, "-o", str(bundle), *options, str(tmp_path / "labels.txt"), "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)
    net = load(bundle)
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    middle = torch.from_numpy(image[3:27, 8:32].astype("float32") / 255).permute(2, 0, 1)
    wanted = (middle - 0.5) / torch.tensor([0.25, 0.5, 0.25]).reshape(3, 1, 1)
    np.testing.assert_allclose(net.preprocess(image), wanted[None], rtol=1e-5, atol=1e-5)
    assert {prediction.label for prediction in net.classify(image)} == {"cat", "dog"}
    header = next(bundle.glob("*.h")).read_text(encoding="utf-8")
    assert "_STD {0.25, 0.5, 0.25}" in header


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--mean", "1,2"], 2, "`1,2` is not three numbers"),
        (["--std", "nan"], 2, "`nan` is not three numbers"),
        (["--std", "0"], 17, "divide by zero"),
        (["--labels", "one.txt"], 17, "1 label, but the network has 2 classes"),
    ],
)
def test_what_does_not_fit_is_one_line(own, tmp_path, capsys, monkeypatch, options, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("cat\n", encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main([*own, "-o", "bundle", *options])
    assert left.value.code == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
