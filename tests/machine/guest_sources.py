# SPDX-License-Identifier: Apache-2.0
"""C sources -> aarch64 files for QEMU, by the Zig that is installed with the tests."""

import subprocess
import sys
from pathlib import Path

STATIC = ("-target", "aarch64-linux-musl", "-static", "-O2")
# The board's C library, or one that is old enough for it.
DYNAMIC = ("-target", "aarch64-linux-gnu.2.28", "-O1")


def compiled(place: Path, source: str, *options: str, name: str = "guest") -> str:
    """The path of what `zig cc` makes of a source, in a directory that exists."""
    (place / "guest.c").write_text(source)
    zig = [sys.executable, "-m", "ziglang", "cc", *options]
    subprocess.run([*zig, "-o", str(place / name), str(place / "guest.c")], check=True)
    return str(place / name)
