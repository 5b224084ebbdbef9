# SPDX-License-Identifier: Apache-2.0
"""What `tvmattend estimate` refuses, one line each: missing tools, other programs and bundles."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from guest_sources import DYNAMIC, STATIC, compiled
from sample_bundles import cortex_a72_bundle, rewrite_manifest

from tvmattend.cli.main import main
from tvmattend.machine import instructions


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
    source = "int main(int argc, char **argv) { return argc - 1; }\n"
    return compiled(tmp_path_factory.mktemp("program"), source, *STATIC)


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
        ("qemu: unknown option 'plugin'", "was built without plugins"),
        ("Could not load plugin /x: undefined symbol", "does not load the plugin"),
    ],
)
def test_an_emulator_without_our_plugin_is_named(
    place, capfd, monkeypatch, program, tmp_path, says, reason
):
    old = tmp_path / "qemu-aarch64"
    old.write_text(f'#!/bin/sh\necho "{says}" >&2; exit 1\n')
    old.chmod(0o755)
    monkeypatch.setattr("tvmattend.machine.tracing.find_qemu", lambda: str(old))
    code, lines = refused(capfd, "--exec", "--", program)
    assert code == 10
    assert reason in lines[0]
    assert "first on PATH" in lines[1]
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


@pytest.mark.parametrize(
    ("baseline", "reason"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("'", "no command line: No closing"),
        ("/nope x", "/nope"),
    ],
)
def test_a_baseline_that_is_none_is_refused_before_anything_runs(
    place, capfd, program, baseline, reason
):
    with pytest.raises(SystemExit) as left:
        main(["estimate", "--exec", "--baseline", baseline, "--", program])
    out, err = capfd.readouterr()
    assert left.value.code == 17
    assert (out, len(err.splitlines())) == ("", 2)  # no word of a program under QEMU
    assert reason in err
    assert list(place.iterdir()) == []
    with pytest.raises(SystemExit) as left:
        main(["estimate", "--baseline", baseline, "bundle"])
    assert left.value.code == 2


def test_a_program_that_may_not_be_executed_is_refused(place, capfd, program, tmp_path):
    other = tmp_path / "other"
    shutil.copy(program, other)
    other.chmod(0o644)
    code, lines = refused(capfd, "--exec", "--", str(other))
    assert (code, len(lines)) == (17, 2)
    assert "may not be executed" in lines[0]
    assert "chmod +x" in lines[1]
    assert list(place.iterdir()) == []


def test_a_directory_is_no_program(place, capfd, tmp_path):
    code, lines = refused(capfd, "--exec", "--", str(tmp_path))
    assert (code, len(lines)) == (17, 2)
    assert f"{tmp_path} is a directory" in lines[0]
    assert "aarch64 executable" in lines[1]
    assert list(place.iterdir()) == []


@pytest.mark.emulated
def test_a_program_without_its_loader_is_told_where_it_is(place, capfd, tmp_path):
    program = compiled(tmp_path, "int main(void) { return 0; }\n", *DYNAMIC)
    root = tmp_path / "root"
    root.mkdir()
    code, lines = refused(capfd, "--exec", "--sysroot", str(root), "--", program)
    assert code == 255
    assert "libc6-arm64-cross" in lines[1]
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("changes", [{"launches": 3}, {"launches": [3]}, {"kernels": None}])
def test_a_malformed_manifest_is_refused(tmp_path, capfd, changes):
    bundle = cortex_a72_bundle(tmp_path)
    rewrite_manifest(bundle, **changes)
    code, lines = refused(capfd, str(bundle))
    assert (code, len(lines)) == (14, 2)
    assert next(iter(changes)) in lines[0]


def test_a_full_disk_is_no_fault_of_the_sources(monkeypatch):
    """Compilers write to $TMPDIR first."""
    from tvmattend.errors import StorageError
    from tvmattend.machine.native import compile_c

    def full(command, **_):
        text = "error: x\nfatal error: writing /tmp/x.s: No space left on device\n"
        return subprocess.CompletedProcess(command, 1, "", text)

    monkeypatch.setattr("subprocess.run", full)
    with pytest.raises(StorageError, match=r"to compile a72_plugin\.c: .*No space left"):
        compile_c(["cc"], "a72_plugin.c")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (0.00116, "0.00116"), (0.5, "0.500"), (7.256, "7.26"), (70.123, "70.12")],
)
def test_small_figures_have_three_digits(value, text):
    from tvmattend.cli.estimate import _count, _figure

    assert _figure(value, 2) == text
    assert (_count(2090.4), _count(123456), _count(126.19e6)) == ("2090", "0.123 M", "126.2 M")


@pytest.mark.emulated
def test_what_is_said_of_the_error_of_a_short_program(emulated, place, capfd, program):
    del emulated

    def printed(*words):
        with pytest.raises(SystemExit) as left:
            main(["estimate", *words, "--exec", "--", program])
        assert left.value.code == 0
        return capfd.readouterr().out

    out = printed()
    assert "of such estimates, of whole networks: " in out
    assert "nothing as short as this was compared with a board" in out
    assert "0.00 ms" not in out
    assert "too short by 7 to 45 %" in printed("--no-caches")


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
