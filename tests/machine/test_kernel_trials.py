# SPDX-License-Identifier: Apache-2.0
"""What the tuner gets of a kernel that fails or hangs."""

import shutil
import subprocess
from pathlib import Path

import pytest
from guest_sources import DYNAMIC, compiled

from tvmattend.codegen.link import BareLinker, Linker
from tvmattend.errors import CompileError
from tvmattend.machine import kernels
from tvmattend.machine.kernels import Argument, KernelTrial, kernel_estimator
from tvmattend.machine.tracing import ProgramError
from tvmattend.storage import says_full
from tvmattend.target import parse_target


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error
        self.timeout = None

    def seconds(self, *given):
        self.timeout = given[3]
        raise self.error


def test_a_kernel_that_runs_too_long_is_a_timeout_whatever_the_worker_took_to_start():
    estimator = Failing(subprocess.TimeoutExpired("qemu", 3.0))
    with pytest.raises(TimeoutError, match=r"3\.0 seconds"):
        KernelTrial(estimator, 3.0, 1)(Path("k.so"), [], Path("out"))
    assert estimator.timeout == 3.0


def test_a_crash_is_an_error_without_the_names_of_files_that_will_be_gone():
    estimator = Failing(ProgramError("/gone/x failed", "", 139))
    seconds, error = KernelTrial(estimator, 3.0, 1)(Path("k.so"), [], Path("out"))
    assert seconds is None
    assert "exit code 139" in error
    assert "gone" not in error


def test_a_full_disk_is_no_verdict_on_a_kernel():
    estimator = Failing(ProgramError("/gone/x failed", "", 68))
    seconds, error = KernelTrial(estimator, 3.0, 1)(Path("k.so"), [], Path("out"))
    assert seconds is None
    assert says_full(error)


@pytest.mark.emulated
def test_tensors_that_cannot_be_written_end_the_guest(tmp_path):
    library = compiled(tmp_path, KERNEL, *DYNAMIC, "-fPIC", "-shared", name="kernel.so")
    with pytest.raises(ProgramError) as caught:
        kernel_estimator()(Path(library), [Argument((4,))], outputs=tmp_path / "none" / "out")
    assert caught.value.exit_code == 68
    with pytest.raises(ProgramError) as caught:
        kernel_estimator()(Path(library), [Argument((1,))], outputs=Path("/dev/full"))
    assert caught.value.exit_code == 68


def test_the_digest_is_of_all_files_but_those_that_no_kernel_meets(tmp_path, monkeypatch):
    own = Path(kernels.__file__).parent
    place = shutil.copytree(own, tmp_path / "machine", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kernels, "__file__", str(place / "kernels.py"))

    def digest():
        return kernels.KernelModel().describe(1)["digest"]

    first = digest()
    for name in kernels._OTHERS:
        (place / name).write_text("", encoding="utf-8")
    assert digest() == first
    (place / "parameters.py").write_text("", encoding="utf-8")
    second = digest()
    (place / "new.py").write_text("", encoding="utf-8")
    assert len({first, second, digest()}) == 3


KERNEL = """
#include <math.h>
#include <string.h>
int __tvm_ffi_main(void *self, const void *arguments, int count, void *result) {
    volatile float x = 1;
    char block[100];
    for (int i = 0; i < 5000; i++) x = expf(x * 0.5f) - 1;
    memset(block, (int)x, sizeof block);
    return block[count];
}
"""


@pytest.mark.emulated
def test_the_quick_linker_changes_no_estimate(tmp_path):
    """Symbols without a version would find the slow `expf` of glibc 2.17."""
    objects = compiled(tmp_path, KERNEL, *DYNAMIC, "-fPIC", "-c", name="kernel.o")
    target, estimator = parse_target("cortex-a72", 1), kernel_estimator()
    quick = BareLinker(target, libraries=KernelTrial(estimator, 9.0, 1).libraries)
    quick(str(tmp_path / "quick.so"), [objects])
    Linker(target)(str(tmp_path / "zig.so"), [objects])
    one, other = (
        estimator(tmp_path / name, [Argument((4,))]).whole for name in ("quick.so", "zig.so")
    )
    assert one.instructions == other.instructions > 5000 * 10
    # Another layout of the file costs a line from DRAM more or less: about 100 of these cycles.
    assert one.cycles == pytest.approx(other.cycles, rel=0.01)
    with pytest.raises(CompileError, match=r"linking none\.so for aarch64.* failed"):
        quick(str(tmp_path / "none.so"), [str(tmp_path / "absent.o")])
