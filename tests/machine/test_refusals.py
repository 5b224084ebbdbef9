# SPDX-License-Identifier: Apache-2.0
"""What `tvmattend estimate` refuses, one line each: missing tools, other programs and bundles."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sample_bundles import cortex_a72_bundle, rewrite_manifest

from tvmattend.cli.main import main
from tvmattend.machine import instructions


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Where temporary files go; a test leaves it empty."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", None)
    return directory


@pytest.fixture
def hide(monkeypatch):
    """Hide programs whose names begin so."""

    def hidden(prefix):
        instructions.llvm_tool.cache_clear()
        real = shutil.which
        monkeypatch.setattr(
            "shutil.which",
            lambda name, *rest, **options: (
                None if Path(name).name.startswith(prefix) else real(name, *rest, **options)
            ),
        )

    yield hidden
    instructions.llvm_tool.cache_clear()


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> str:
    """An aarch64 program that needs nothing: exits with the number of its arguments."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "main.c").write_text("int main(int argc, char **argv) { return argc - 1; }\n")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static"]
    subprocess.run([*zig, "-o", str(folder / "main"), str(folder / "main.c")], check=True)
    return str(folder / "main")


def refused(capfd, *words: str) -> tuple[int, list[str]]:
    """Give the exit code and the lines of the error."""
    with pytest.raises(SystemExit) as left:
        main(["estimate", *words])
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = err.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("error: "))
    return int(left.value.code or 0), lines[start:]


@pytest.mark.parametrize(
    ("prefix", "package"),
    [("qemu-aarch64", "qemu-user"), ("llvm-mca", "llvm"), ("llvm-mc", "llvm")],
)
def test_a_missing_tool_is_named_with_its_package(hide, place, capfd, program, prefix, package):
    hide(prefix)
    code, lines = refused(capfd, "--exec", "--", program)
    assert code == 10
    assert len(lines) == 2
    assert f"no `{prefix}" in lines[0]
    assert package in lines[1]
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("qemu: unknown option -plugin", "was built without plugins"),
        ("Could not load plugin /x: undefined symbol", "does not load the plugin"),
    ],
)
def test_an_emulator_without_our_plugin_is_named(
    place, capfd, monkeypatch, program, tmp_path, says, reason
):
    old = tmp_path / "qemu-aarch64"
    # As QEMU puts it: the option's name is in its message.
    old.write_text(f"#!/bin/sh\necho '{says} (-plugin)' >&2; exit 1\n")
    old.chmod(0o755)
    monkeypatch.setattr("tvmattend.machine.tracing.find_qemu", lambda: str(old))
    code, lines = refused(capfd, "--exec", "--", program)
    assert code == 10
    assert reason in lines[0]
    assert "qemu-user" in lines[1]
    assert list(place.iterdir()) == []


def test_a_program_for_this_machine_is_refused(place, capfd):
    code, lines = refused(capfd, "--exec", "--", sys.executable)
    assert code == 17
    assert "not aarch64" in lines[0] or "a script" in lines[0]
    assert list(place.iterdir()) == []


@pytest.mark.emulated
def test_the_exit_code_of_a_program_that_fails_is_ours(emulated, place, capfd, program):
    del emulated
    code, lines = refused(capfd, "--exec", "--", program, "a", "b", "c")
    assert code == 3
    assert "exit code 3" in lines[0]
    assert list(place.iterdir()) == []


@pytest.mark.emulated
def test_a_baseline_as_long_as_the_command_is_refused(emulated, place, capfd, program):
    del emulated
    code, lines = refused(capfd, "--exec", "--baseline", program, "--", program)
    assert code == 17
    assert "baseline" in lines[0]
    assert list(place.iterdir()) == []


def test_a_bundle_for_another_core_is_refused_and_not_touched(tmp_path, place, capfd):
    bundle = cortex_a72_bundle(tmp_path)
    target = json.loads((bundle / "manifest.json").read_text())["target"]
    rewrite_manifest(bundle, target={**target, "mcpu": "cortex-a76"})
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    code, lines = refused(capfd, str(bundle))
    assert code == 15
    assert "cortex-a76; the port model and the caches are those of a cortex-a72" in lines[0]
    assert "--target cortex-a72" in lines[1]
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before
    assert list(place.iterdir()) == []


def test_what_is_no_bundle_is_refused(tmp_path, capfd):
    assert refused(capfd, str(tmp_path / "nothing"))[0] == 14
