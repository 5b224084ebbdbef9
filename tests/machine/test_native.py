# SPDX-License-Identifier: Apache-2.0
"""The model's C is clean for the compiler that is installed, and for the one that pip brings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tvmattend.errors import CompileError
from tvmattend.machine import native

STRICT = ("-Wall", "-Wextra", "-Werror")
PLACE = Path(native.__file__).parent


def test_a_compiler_that_refuses_is_quoted_whatever_it_says(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_bytes(b"#!/bin/sh\nprintf 'x.c:1: error: \377 expected\\n' >&2; exit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(CompileError, match=r"cannot compile x\.c: x\.c:1: error: . expected"):
        native.compile_c([str(compiler)], "x.c")


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
