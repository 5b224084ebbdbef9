# SPDX-License-Identifier: Apache-2.0
"""`tvmattend bench` from the command line, with the real tvmattend and PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tvmattend.cli.main import main


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
