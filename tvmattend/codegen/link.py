# SPDX-License-Identifier: Apache-2.0
"""Objects -> one shared library for the target, on any host, without a cross toolchain.

The linker is Zig's, from the Python wheel `ziglang`: it carries the C libraries of its targets, so
linking for an aarch64 board needs no apt package. `--cross-compiler CMD` takes any other driver
that understands `-shared -o OUTPUT OBJECTS`.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmattend.cache import zig_environment
from tvmattend.errors import CompileError, StorageError, ToolMissingError
from tvmattend.storage import says_full
from tvmattend.target import TargetSpec

# The oldest C library that the result runs on: that of Debian 10 and of TVM's own wheels
# (manylinux_2_28). Left to itself, Zig would take its newest.
GLIBC = "2.28"

# The first call for a target builds its C library (15 s on two cores); a link takes 0.2 s.
_TIMEOUT_SECONDS = 600


def link_shared(
    objects: Sequence[str | Path],
    output: str | Path,
    target: TargetSpec,
    cross_compiler: str | None = None,
) -> None:
    """Link object files into a shared library.

    Args:
        objects: Object files (or static libraries) of the target's architecture, in order.
        output: The library to write; it appears only when the link succeeded.
        target: Decides the architecture; the core does not matter to a linker.
        cross_compiler: A compiler driver with its own options, e.g. `aarch64-linux-gnu-gcc`.
            None means Zig.

    Raises:
        ToolMissingError: Neither Zig nor the compiler given is there.
        CompileError: The linker failed; the message ends with its last lines.
        StorageError: The linker met a full disk, or Zig has no place for its cache.
    """
    output = Path(output)
    # A linker that dies half-way must not leave a file that looks like a library.
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    driver = link_command(target, cross_compiler)
    command = [*driver, "-shared", "-fPIC", "-o", str(partial), *map(str, objects), "-lm"]
    try:
        _link(command, partial, output.name, target, cross_compiler)
        partial.replace(output)
    except OSError as error:
        raise CompileError(f"linking {output.name}: {error}", remedy(cross_compiler)) from error
    finally:
        partial.unlink(missing_ok=True)


def run_tool(
    command: Sequence[str], what: str, cross_compiler: str | None, directory: Path | None = None
) -> None:
    """Run a compiler or linker, and tell what it says when it fails.

    Args:
        command: The program and its arguments.
        what: It does, e.g. `linking model.so`.
        cross_compiler: The user's own driver, if the program is that one.
        directory: Where it runs.

    Raises:
        CompileError: It failed; the message ends with its last lines.
        StorageError: It met a full disk, or Zig has no place for its cache.
        ToolMissingError: It cannot be started.
    """
    environment = zig_environment()
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            cwd=directory,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        message = f"{what} took more than {_TIMEOUT_SECONDS} s"
        raise CompileError(message, remedy(cross_compiler)) from error
    except OSError as error:
        raise ToolMissingError(
            f"{what}: {command[0]}: {error.strerror}", remedy(cross_compiler)
        ) from error
    if done.returncode == 0:
        return
    if says_full(done.stderr) or "cache directory" in done.stderr:
        raise StorageError(
            f"{what}: {_last_lines(done.stderr)}",
            "free some space there; Zig keeps its cache, which it must be able to write to, in "
            "$ZIG_GLOBAL_CACHE_DIR, else in that of tvmattend ($TVMATTEND_CACHE)",
        )
    raise CompileError(
        f"{what} failed (exit code {done.returncode}): {_last_lines(done.stderr)}",
        remedy(cross_compiler),
    )


def _link(
    command: Sequence[str], output: Path, name: str, target: TargetSpec, cross_compiler: str | None
) -> None:
    """Run a linker, and see that it wrote its output; errors as those of `link_shared`."""
    run_tool(command, f"linking {name} for {target.triple}", cross_compiler)
    if not output.is_file():
        raise CompileError(
            f"`{command[0]}` said nothing and wrote no {name}", remedy(cross_compiler)
        )


def link_command(target: TargetSpec, cross_compiler: str | None = None) -> list[str]:
    """Give the compiler driver to link with, without files.

    Raises:
        ToolMissingError: It is not there.
        StorageError: Zig has no place for its cache.
    """
    if cross_compiler is not None:
        return _driver(cross_compiler, target)
    if importlib.util.find_spec("ziglang") is None:
        raise ToolMissingError(
            f"linking for {target.triple} needs Zig, which is not installed",
            f"`{sys.executable} -m pip install ziglang`, or give --cross-compiler",
        )
    zig_environment()  # says it if there is no place for the cache
    # `-s` drops debugging information of Zig's own runtime: it is most of a small library.
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{target.triple}.{GLIBC}", "-s"]


@dataclass(frozen=True)
class Linker:
    """`link_shared` in the shape that TVM's `export_library(fcompile=...)` calls.

    A plain value: it goes to the worker processes of a builder by pickle.
    """

    target: TargetSpec
    cross_compiler: str | None = None

    object_format = "o"
    output_format = "so"

    def __call__(self, output: str, objects: Sequence[str], **options: Any) -> None:
        """Link `objects` into `output`; TVM passes no options that we know of."""
        if options:
            raise CompileError(f"the linker knows no options {sorted(options)}")
        link_shared(objects, output, self.target, self.cross_compiler)

    def get_target_triple(self) -> str:
        """Give the triple for the object in which TVM packs constants."""
        return self.target.triple


@dataclass(frozen=True)
class BareLinker(Linker):
    """Joins objects by Zig's linker itself, in a quarter of the time of its compiler driver.

    There is nothing of a compiler's runtime in the result; what the objects need is in libraries
    whose files are here.

    Attributes:
        libraries: Shared libraries that the result needs, where this machine has them.
    """

    libraries: tuple[str, ...] = ()

    def __call__(self, output: str, objects: Sequence[str], **options: Any) -> None:
        """Link `objects` into `output`; TVM passes no options that we know of."""
        if options:
            raise CompileError(f"the linker knows no options {sorted(options)}")
        link_command(self.target)  # says it if there is no Zig
        import ziglang

        zig = str(Path(ziglang.__file__).with_name("zig"))
        command = [zig, "ld.lld", "-shared", "-s", "-o", output, *objects, *self.libraries]
        _link(command, Path(output), Path(output).name, self.target, None)


# Packages with a compiler driver, for whoever asks for one that is not there.
_DEBIAN = {"aarch64": "gcc-aarch64-linux-gnu", "x86_64": "gcc-x86-64-linux-gnu"}


def _driver(command: str, target: TargetSpec) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ToolMissingError(
            f"--cross-compiler `{command}`: {error}", "check the quotes"
        ) from error
    if not words or shutil.which(words[0]) is None:
        name = words[0] if words else command
        raise ToolMissingError(
            f"there is no cross compiler `{name}`",
            f"install it (Debian: `{_DEBIAN[target.arch]}`), or leave --cross-compiler out to link "
            "with Zig",
        )
    return words


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "it gave no reason"


def remedy(cross_compiler: str | None) -> str:
    """Say what to do when a compiler or linker fails."""
    if cross_compiler is not None:
        return "check --cross-compiler, or leave it out to link with Zig"
    return "free disk space may be short, or the objects belong to another architecture"
