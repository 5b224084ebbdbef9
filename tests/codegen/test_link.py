# SPDX-License-Identifier: Apache-2.0
"""Linking: both architectures by Zig, a compiler of the user's, and everything that can fail."""

import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tvmattend.codegen.link import Linker, link_command, link_shared, run_tool
from tvmattend.errors import CompileError, StorageError, ToolMissingError
from tvmattend.target import TargetSpec, host_target, parse_target

A72 = parse_target("cortex-a72")
X86 = parse_target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64")
MACHINES = {"aarch64": 183, "x86_64": 62}


def compile_object(directory: Path, target: TargetSpec) -> Path:
    source = directory / "one.c"
    source.write_text("double cos(double); double one(double x) { return cos(x) + 1; }\n")
    output = directory / f"one-{target.arch}.o"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{target.triple}.2.28"]
    subprocess.run([*command, "-O1", "-fPIC", "-c", "-o", output, source], check=True)
    return output


def elf_machine(path: Path) -> int:
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    return int(struct.unpack_from("<H", header, 18)[0])


@pytest.mark.parametrize("target", [A72, X86], ids=lambda target: target.arch)
def test_zig_links_for_both_architectures(tmp_path: Path, target: TargetSpec) -> None:
    output = tmp_path / "one.so"
    link_shared([compile_object(tmp_path, target)], output, target)
    assert elf_machine(output) == MACHINES[target.arch]
    # Nothing newer than the C library that we promise.
    needed = {
        tuple(map(int, word.split(b".")))
        for word in output.read_bytes().replace(b"GLIBC_", b"\0GLIBC_").split(b"\0")
        if word.startswith(b"GLIBC_2")
        for word in [word.removeprefix(b"GLIBC_")]
    }
    assert needed
    assert max(needed) <= (2, 28)


def test_a_library_that_cannot_be_linked_is_no_library(tmp_path: Path) -> None:
    output = tmp_path / "one.so"
    with pytest.raises(CompileError, match=r"one\.so for x86_64-linux-gnu failed") as caught:
        link_shared([compile_object(tmp_path, A72)], output, X86)
    assert "one-aarch64.o" in str(caught.value)
    assert list(tmp_path.glob("*.so*")) == []
    assert list(tmp_path.glob(".*")) == []


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"nowhere\.o"):
        link_shared([tmp_path / "nowhere.o"], tmp_path / "one.so", A72)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no system compiler to be given")
def test_a_compiler_of_the_users_choice(tmp_path: Path) -> None:
    host = host_target()
    output = tmp_path / "one.so"
    link_shared([compile_object(tmp_path, host)], output, host, cross_compiler="cc -O1")
    assert elf_machine(output) == MACHINES[host.arch]


@pytest.mark.parametrize("command", ["no-such-gcc -O2", "", "'gcc"])
def test_a_compiler_that_is_not_there(tmp_path: Path, command: str) -> None:
    with pytest.raises(ToolMissingError) as caught:
        link_shared([], tmp_path / "one.so", A72, cross_compiler=command)
    assert caught.value.hint


def test_a_compiler_that_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"wrote no one\.so"):
        link_shared([], tmp_path / "one.so", A72, cross_compiler="true")


def test_without_zig_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ToolMissingError) as caught:
        link_command(A72)
    assert "pip install ziglang" in caught.value.hint


def test_zigs_cache_is_in_ours_unless_it_is_said_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import os; open('found', 'w').write(os.environ['ZIG_GLOBAL_CACHE_DIR'])"
    for chosen, place in (("", tmp_path / "tvmattend" / "zig"), ("/elsewhere", Path("/elsewhere"))):
        monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", chosen)
        monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "tvmattend"))
        run_tool([sys.executable, "-c", script], "showing", None, tmp_path)
        assert (tmp_path / "found").read_text() == str(place)
    assert (tmp_path / "tvmattend" / "zig").is_dir()


def test_a_cache_that_zig_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = compile_object(tmp_path, A72)
    file = tmp_path / "file"
    file.touch()
    for zig, ours in (("", file), (str(file), tmp_path)):
        monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", zig)
        monkeypatch.setenv("TVMATTEND_CACHE", str(ours))
        with pytest.raises(StorageError) as caught:
            link_shared([source], tmp_path / "one.so", A72)
        assert str(file) in str(caught.value)
        assert "TVMATTEND_CACHE" in caught.value.hint


def test_the_linker_travels_by_pickle(tmp_path: Path) -> None:
    linker = pickle.loads(pickle.dumps(Linker(A72)))  # noqa: S301
    assert linker == Linker(A72)
    assert linker.get_target_triple() == "aarch64-linux-gnu"
    linker(str(tmp_path / "one.so"), [str(compile_object(tmp_path, A72))])
    assert elf_machine(tmp_path / "one.so") == 183
    with pytest.raises(CompileError, match="cc"):
        linker(str(tmp_path / "two.so"), [], cc="gcc")
