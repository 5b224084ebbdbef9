# SPDX-License-Identifier: Apache-2.0
"""The model's C is clean for the compiler that is installed, and for the one that pip brings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tvmattend.machine import native

STRICT = ("-Wall", "-Wextra", "-Werror")
PLACE = Path(native.__file__).parent


@pytest.mark.parametrize("file", list(native._SOURCES.values()))
@pytest.mark.parametrize("compiler", ["installed", "zig"])
def test_both_compilers_take_it(tmp_path, compiler, file):
    command = [sys.executable, "-m", "ziglang", "cc"]
    if compiler == "installed":
        found = shutil.which("cc")
        assert found is not None, "the tests need a C compiler (README)"
        command = [found]
    options = [*native._FLAGS, *STRICT, "-o", str(tmp_path / "out.so")]
    done = subprocess.run(
        [*command, *options, str(PLACE / file)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
