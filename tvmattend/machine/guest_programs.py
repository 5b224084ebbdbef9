# SPDX-License-Identifier: Apache-2.0
"""What the C guests run on: themselves, compiled once, and a board without Python."""

import hashlib
import sys
from pathlib import Path

from tvmattend.cache import Progress, prepared
from tvmattend.device.emulated import prepare
from tvmattend.machine.board_files import board_files_version, write_board_files
from tvmattend.machine.native import compile_c

_TARGET = "aarch64-linux-gnu.2.28"
_FLAGS = ("-O2", "-rdynamic")
_LIBRARIES = ("-ldl",)


def guest_program(source: Path, progress: Progress = lambda _: None) -> Path:
    """Give the executable of a C file beside this one, compiling it if the cache has none.

    Raises:
        CompileError: Zig refuses it.
        StorageError: The cache cannot be written.
    """
    stamp = {
        "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        "options": [_TARGET, *_FLAGS, *_LIBRARIES],
    }

    def build(place: Path) -> None:
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", _TARGET, *_FLAGS]
        compile_c(
            [*compiler, "-o", str(place / source.stem), str(source), *_LIBRARIES], source.name
        )

    return prepared(f"machine-{source.stem}", stamp, build, progress) / source.stem


def guest_board(clock_hz: float, progress: Progress = lambda _: None) -> Path:
    """Give what a guest sees as its root: the board's C library and files.

    Args:
        clock_hz: That the board says it has.
        progress: Told about downloads.

    Raises:
        ToolMissingError: QEMU, or something that the board needs, is missing.
        StorageError: The cache cannot be written.
    """
    root = prepare(progress).root
    stamp = {"root": str(root), "clock": clock_hz, "files": board_files_version()}
    return prepared(
        "machine-board", stamp, lambda into: write_board_files(into, root, clock_hz), progress
    )
