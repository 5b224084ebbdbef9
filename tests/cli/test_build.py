# SPDX-License-Identifier: Apache-2.0
"""`tvmattend build`: what it prints, what it refuses, and that it leaves nothing half written."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tvmattend.cli.main import main
from tvmattend.runtime import load
from tvmattend.target import TargetSpec

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
    kernels = json.loads((Path(report["bundle"]) / "manifest.json").read_text())["kernels"]
    assert Counter(kernel["origin"] for kernel in kernels) == Counter(report["records"])
    assert sum(kernel["calls"] for kernel in kernels) == report["kernel_launches"]
    assert len({kernel["key"] for kernel in kernels}) == len(kernels)
    assert any(kernel["point"] for kernel in kernels)
    net = load(report["bundle"])
    assert net(np.zeros(net.inputs[0].shape, "float32")).shape == (1, 10)
    size = sum(path.stat().st_size for path in Path(report["bundle"]).rglob("*") if path.is_file())
    weights = 25_286 * 4
    assert size - weights < 10e6, "a bundle without its weights stays under 10 MB"


def test_the_directory_is_named_after_network_and_machine(capsys):
    assert run([*TINY, "--target", "cortex-a72"]) == 0
    assert Path("artifacts/attendnext_tiny-cortex-a72/libattendnext_tiny.so").is_file()
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
    assert names[0] == "00-canonical.py"
    assert names[-1] == "08-scheduled.py"
    assert "T.vectorized" in (tmp_path / "ir" / names[-1]).read_text()


@pytest.mark.parametrize("place", ["bundle", "bundle/ir", "."])
def test_a_dump_and_a_bundle_do_not_lie_in_each_other(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run([*TINY, "--output", "bundle", "--dump-ir", place]) == 17
    assert "lie in each other" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "atendnext"], 4, "attendnext"),
        (["--target", "cortex-a721"], 3, "cortex-a721"),
        (["--threads", "0"], 2, "--threads"),
        (["--weights", "none.pt"], 6, "none.pt"),
        (["--no-records", "--tuning-records", "none.jsonl"], 2, "--no-records asks for none"),
        (["--tuning-records", "none.jsonl"], 11, "none.jsonl"),
        (["--cross-compiler", "no-such-compiler"], 10, "no-such-compiler"),
        (["--output", "taken/bundle"], 13, "taken"),
        (["--name", "1bad name"], 17, "--name net_1bad_name"),
        (["--verify", "--target", "cortex-a76"], 15, "--libc musl"),
        (["--verify", "--target", "bdver2"], 15, "lacks"),  # AMD's of 2012: nobody's since
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


def test_a_head_that_is_too_large_is_the_users(capsys, monkeypatch, tmp_path):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("tvmattend.frontend.network.create", full)
    assert run([*TINY, "--num-classes", "2000000000"]) == 4
    told = capsys.readouterr().err
    assert "does not fit into memory" in told
    assert "hint: give a smaller --num-classes" in told
    assert not (tmp_path / "artifacts").exists()


def test_a_linker_that_fails_leaves_nothing(capsys, tmp_path):
    assert run([*TINY, "--cross-compiler", "false"]) == 18
    assert "failed (exit code 1)" in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("which", ["TMPDIR", "output"])
def test_a_full_disk_is_known_before_any_work(which, capsys, monkeypatch, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    usage = shutil.disk_usage

    def fake(place):
        return usage(place)._replace(free=1_000_000) if Path(place) == full else usage(place)

    monkeypatch.setattr("shutil.disk_usage", fake)
    words = ["-o", str(full / "x")]
    if which == "TMPDIR":
        monkeypatch.setenv("TMPDIR", str(full))
        words = ["-o", "x"]
    assert run([*TINY, *words]) == 13
    error, hint = capsys.readouterr().err.splitlines()
    assert error == (
        f"error: no space left: the file system of {full} has 1 MB free, 4 MB are needed"
    )
    assert hint.startswith("hint: ")
    assert ("TMPDIR" if which == "TMPDIR" else "--output") in hint
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_room_that_is_asked_for_follows_from_the_network(capsys, monkeypatch, tmp_path):
    usage = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(place)._replace(free=6_000_000))
    assert run([*TINY, "--format", "vm", "-o", str(tmp_path / "x")]) == 13
    assert "has 6 MB free, 13 MB are needed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert run([*TINY, "-o", str(tmp_path / "x")]) == 0


def test_work_files_lie_beside_the_bundle_and_go(monkeypatch, tmp_path):
    """$TMPDIR may be a small memory disk, and a full one is no error that can be caught."""
    seen = []
    monkeypatch.setattr(
        "tvmattend.codegen.link.link_shared",
        lambda objects, output, *_: (
            seen.extend([*map(Path, objects), Path(output)]) or sys.exit("stopped")
        ),
    )
    with pytest.raises(SystemExit, match="stopped"):
        main([*TINY, "--format", "vm", "-o", str(tmp_path / "out" / "x")])
    assert len(seen) > 1
    for path in seen:
        hidden = path.relative_to(tmp_path / "out").parts[0]
        assert hidden.startswith(".x.build-")
    assert not list(tmp_path.iterdir())


def test_verifying_without_an_emulator_is_refused_before_compiling(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(TargetSpec, "is_host", False)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert run([*TINY, "--target", "cortex-a72", "--verify"]) == 10
    error, hint = capsys.readouterr().err.splitlines()
    assert "qemu-aarch64" in error
    assert "qemu-user" in hint
    assert not list(tmp_path.iterdir())
