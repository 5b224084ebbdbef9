# SPDX-License-Identifier: Apache-2.0
"""The library on the emulated Cortex-A72: with glibc from Python, with musl as a static program."""

import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from c_networks import DRIVER, Built, build, run

from tvmattend.device.emulated import EmulatedPython, find_qemu
from tvmattend.frontend import ImportedModel
from tvmattend.runtime import standalone
from tvmattend.runtime.network import relative_error
from tvmattend.standalone import elf
from tvmattend.standalone.toolchain import Toolchain
from tvmattend.target import parse_target

pytestmark = pytest.mark.emulated


@pytest.fixture(scope="module")
def static_program(tiny_a72: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' program for aarch64, with musl inside: it needs no file of the board."""
    program = tmp_path_factory.mktemp("static") / "driver"
    compiler = Toolchain(tiny_a72.target, "musl").driver()
    include = f"-I{tiny_a72.files.header.parent}"
    flags = ["-std=c11", "-O1", "-static", include]
    run([*compiler, *flags, DRIVER, tiny_a72.files.static, "-o", program])
    return program


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_static_program_computes_the_network(
    static_program: Path, tiny_a72: Built, tmp_path: Path, threads: int
) -> None:
    assert elf.needed(static_program) == []
    x, path = tiny_a72.inputs(tmp_path)
    out = tmp_path / "out.bin"
    run([find_qemu(), "-cpu", "cortex-a72", static_program, "run", path, out, threads])
    reference = tiny_a72.imported.reference([x])[0]
    found = np.fromfile(out, "float32").reshape(reference.shape)
    assert relative_error(found, reference) < 1e-4


@pytest.mark.parametrize("what", ["misuse", "many", "park"])
def test_the_driver(static_program: Path, tiny_a72: Built, tmp_path: Path, what: str) -> None:
    path = tiny_a72.inputs(tmp_path)[1]
    run([find_qemu(), "-cpu", "cortex-a72", static_program, what, path])


def test_the_musl_library_needs_musl_only(tiny_a72: Built) -> None:
    assert elf.needed(tiny_a72.files.shared) == ["libc.so"]
    assert tiny_a72.files.system == "musl"


def test_python_needs_numpy_only(
    imported: ImportedModel, device_python: EmulatedPython, tmp_path: Path
) -> None:
    """Bit for bit the same with 1, 2 and 4 threads, and the reference's within the tolerance."""
    glibc = build(imported, parse_target("cortex-a72"), tmp_path)
    assert set(glibc.files.needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    ((x,),) = imported.sample_inputs(1)
    np.save(tmp_path / "x.npy", x)
    shutil.copy(standalone.__file__, tmp_path / "tvmattend_standalone.py")
    program = textwrap.dedent("""
        import sys
        import numpy as np
        sys.path.insert(0, sys.argv[1])
        from tvmattend_standalone import Library
        x = np.load(sys.argv[1] + "/x.npy")
        results = [Library(sys.argv[2], threads).run([x])[0] for threads in (1, 2, 4)]
        assert all(np.array_equal(results[0], other) for other in results)
        assert "tvm_ffi" not in sys.modules
        np.save(sys.argv[1] + "/y.npy", results[0])
    """)
    done = device_python.run(["-c", program, str(tmp_path), str(glibc.files.shared)])
    assert done.returncode == 0, done.stderr
    assert relative_error(np.load(tmp_path / "y.npy"), imported.reference([x])[0]) < 1e-4
