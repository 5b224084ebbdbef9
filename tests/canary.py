# SPDX-License-Identifier: Apache-2.0
"""A library that leaves a trace as soon as it is loaded, to show that something never was."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

VARIABLE = "TVMATTEND_CANARY"
_SOURCE = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void sing(void) {
  const char *path = getenv("TVMATTEND_CANARY");
  FILE *file = path ? fopen(path, "w") : 0;
  if (file) { fputs("loaded", file); fclose(file); }
}
"""
# The same in Python.
PYTHON_CANARY = f"import os\nopen(os.environ['{VARIABLE}'], 'w').close()\n"


@functools.cache
def canary_bytes() -> bytes:
    """The library's content; its constructor writes the file that `$TVMATTEND_CANARY` names."""
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "canary.c", Path(name) / "canary.so"
        source.write_text(_SOURCE)
        command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-o", output, source]
        subprocess.run(command, check=True, capture_output=True)
        return output.read_bytes()


class Cage:
    """A place where canaries leave their trace.

    Args:
        directory: For the file; must exist.
    """

    def __init__(self, directory: Path) -> None:
        self.trace = directory / "canary-was-loaded"
        self.environment = {**os.environ, VARIABLE: str(self.trace)}

    def sang(self) -> bool:
        """Whether one was loaded since the last time this was asked."""
        found = self.trace.exists()
        self.trace.unlink(missing_ok=True)
        return found
