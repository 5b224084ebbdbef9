# SPDX-License-Identifier: Apache-2.0
"""`tvmattend build`: what it prints, what it refuses, and that it leaves nothing half written."""

import json
from pathlib import Path

import numpy as np
import pytest

from tvmattend.cli.main import main
from tvmattend.runtime import load

TINY = ["build", "--model", "attendnext_tiny", "--target", "host"]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    return int(leave.value.code or 0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Build outside the checkout, as users do."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_verified_bundle_with_one_command(capsys):
    assert run([*TINY, "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"]["max_rel_error"] <= 1e-4
    assert sum(report["records"].values()) == report["kernels"]
    net = load(report["bundle"])
    assert net(np.zeros(net.inputs[0].shape, "float32")).shape == (1, 10)
    size = sum(path.stat().st_size for path in Path(report["bundle"]).rglob("*") if path.is_file())
    weights = 25_286 * 4
    assert size - weights < 10e6, "a bundle without its weights stays under 10 MB"


def test_the_directory_is_named_after_network_and_machine(capsys):
    assert run([*TINY, "--target", "cortex-a72"]) == 0
    assert Path("artifacts/attendnext_tiny-cortex-a72/model.so").is_file()
    out = capsys.readouterr().out
    assert "0 with a tuning record" in out
    assert "static reasoning" in out


def test_every_form_of_a_machine_writes_to_the_same_place(capsys):
    assert run([*TINY, "--target", "cortex-a72"]) == 0
    form = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72"
    assert run([*TINY, "--target", form]) == 12
    assert "--force" in capsys.readouterr().err
    assert run([*TINY, "--target", form, "--force"]) == 0


def test_the_ir_of_every_phase_is_dumped(tmp_path):
    assert run([*TINY, "--dump-ir", str(tmp_path / "ir")]) == 0
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert names[0].startswith("00-")
    assert "def main" in (tmp_path / "ir" / names[-1]).read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "atendnext"], 4, "attendnext"),
        (["--target", "cortex-a720"], 3, "cortex-a720"),
        (["--threads", "0"], 3, "--threads"),
        (["--weights", "none.pt"], 6, "none.pt"),
        (["--tuning-records", "none.jsonl"], 11, "none.jsonl"),
        (["--cross-compiler", "no-such-compiler"], 10, "no-such-compiler"),
        (["--output", "taken/bundle"], 13, "taken"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, code, said, capsys, tmp_path):
    (tmp_path / "taken").write_text("a file where a directory should be")
    assert run([*TINY, *arguments]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "importing" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "artifacts").exists()


def test_a_linker_that_fails_leaves_nothing(capsys, tmp_path):
    assert run([*TINY, "--cross-compiler", "false"]) == 18
    assert "failed (exit code 1)" in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()
