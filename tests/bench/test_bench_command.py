# SPDX-License-Identifier: Apache-2.0
"""`tvmattend bench` from the command line, with the real tvmattend and PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvmattend.bench.torch_network import torch_module
from tvmattend.cli.main import main
from tvmattend.errors import BenchmarkError, ModelError
from tvmattend.frontend import ModelRequest


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvmattend", "bench", *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, cwd=cwd
    )


def test_tiny_network_beside_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    done = bench(
        "--model", "attendnext_tiny", "--against", "torch", "--rounds", "2", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)  # one object and nothing else
    assert [entry["runtime"] for entry in data["results"]] == ["tvmattend", "torch"]
    assert data["not_timed"] == []
    assert data["fastest_peer"] == "torch"
    # A network of 0.1 ms: PyTorch's calls alone take longer.
    assert data["ratio"] > 1
    for entry in data["results"]:
        assert 0 < entry["min_ms"] <= entry["median_ms"] <= entry["max_ms"]
        assert entry["max_rel_error"] < 1e-4
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_what_was_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        main(["bench", "--model", "attendnext_tiny", "--rounds", "1", "--against", "ncnn"])
    assert left.value.code == 21
    told = capsys.readouterr()
    assert "ncnn: missing: pip install ncnn pnnx" in told.out
    assert "error: nothing of --against ncnn could be compared with" in told.err


def test_unknown_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "--against", "openvino,tensorrt"])
    assert left.value.code == 21
    told = capsys.readouterr()
    assert told.out == ""
    error, hint = told.err.splitlines()
    assert error == "error: the bench knows no runtime `tensorrt`"
    assert "openvino" in hint


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--threads", "0"), 2),
        (("--threads", "100000"), 17),
        (("--rounds", "0"), 2),
        (("--target", "cortex-a72 "), 17),
        (("--target", "nonsense"), 3),
        (("--model", "no_such_network"), 4),
        (("--cpus", "first"), 2),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    arguments: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "--against", "torch", *arguments])
    assert left.value.code == code
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert told.err.strip()


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("tvmattend.bench.comparison.compare", []),
        ("tvmattend.bench.estimated.compare_estimates", ["--estimate", "--target", "cortex-a72"]),
    ],
)
def test_the_network_is_the_one_that_other_commands_would_build(
    place: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ModelRequest] = []

    def compare(request: ModelRequest, *_: object) -> None:
        asked.append(request)
        raise BenchmarkError("enough")

    monkeypatch.setattr(place, compare)
    with pytest.raises(SystemExit):
        main(["bench", "--num-classes", "3", "--input-size", "64", "--seed", "5", *options])
    assert asked == [ModelRequest(num_classes=3, input_size=64, seed=5)]
    network, shape = torch_module(asked[0])
    assert shape == (1, 3, 64, 64)
    assert network.state_dict()["head.bias"].shape == (3,)


def test_an_archive_of_two_inputs_is_told_as_such(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    path = tmp_path / "two.pt2"
    torch.export.save(torch.export.export(Two(), (torch.ones(1, 2), torch.ones(1, 2))), path)
    with pytest.raises(ModelError, match="takes 2 inputs"):
        torch_module(ModelRequest(str(path)))
