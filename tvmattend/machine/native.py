# SPDX-License-Identifier: Apache-2.0
"""The C files of this room that run here, compiled once on the machine that estimates."""

import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmattend.cache import Progress, prepared, zig_environment
from tvmattend.errors import CompileError, ToolMissingError
from tvmattend.storage import compiler_fault

_SOURCES = {"plugin": "a72_plugin.c", "core": "a72_core.c"}
_HEADERS = ("a72_caches.h", "a72_pace.h", "a72_samples.h", "qemu_plugin_api.h")
# The plugin's undefined names are QEMU's own, found when QEMU loads it.
_FLAGS = ("-O2", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden")
# Zig builds its C library for a target first.
_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Native:
    """Where the shared libraries are: for QEMU, and for this process."""

    plugin: Path
    core: Path


def native(progress: Progress = lambda _: None) -> Native:
    """Give both libraries, compiling them if the cache does not hold them.

    Raises:
        ToolMissingError: There is no C compiler.
        CompileError: It refuses the sources.
        StorageError: The cache cannot be written.
    """
    here = Path(__file__).parent
    files = [*_SOURCES.values(), *_HEADERS]
    stamp = {
        "sources": {n: hashlib.sha256((here / n).read_bytes()).hexdigest() for n in files},
        "flags": list(_FLAGS),
    }
    place = prepared("machine", stamp, functools.partial(_build, here), progress)
    return Native(place / "plugin.so", place / "core.so")


def _compiler() -> list[str]:
    """A compiler for this machine; the installed one starts faster than Zig's."""
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise ToolMissingError(
        "there is no C compiler for the machine model's plugin",
        "`pip install ziglang`, or install the package `gcc`",
    )


def _build(here: Path, place: Path) -> None:
    compiler = _compiler()
    for name, file in _SOURCES.items():
        compile_c([*compiler, *_FLAGS, "-o", str(place / f"{name}.so"), str(here / file)], file)


def compile_c(command: Sequence[str], file: str) -> None:
    """Run a C compiler.

    Args:
        command: The compiler and its arguments.
        file: What it compiles.

    Raises:
        CompileError: It refuses the file, or does not end.
        StorageError: It met a full disk.
    """
    hint = "`pip install ziglang` brings a compiler that is known to work"
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            env=zig_environment(),
        )
    except subprocess.TimeoutExpired as error:
        told = f"compiling {file} took more than {_TIMEOUT_SECONDS} s"
        raise CompileError(told, hint) from error
    if done.returncode == 0:
        return
    fault = compiler_fault(file, done.stderr)
    if fault is not None:
        raise fault
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    compiler = "Zig" if "ziglang" in command else command[0]
    raise CompileError(f"{compiler} cannot compile {file}: {(lines or ['no message'])[0]}", hint)
