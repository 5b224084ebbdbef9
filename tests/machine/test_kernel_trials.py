# SPDX-License-Identifier: Apache-2.0
"""What the tuner gets of a kernel that fails or hangs."""

import subprocess
from pathlib import Path

import pytest
from guest_sources import DYNAMIC, compiled

from tvmattend.codegen.link import BareLinker, Linker
from tvmattend.errors import CompileError
from tvmattend.machine.kernels import Argument, KernelTrial, kernel_estimator
from tvmattend.machine.tracing import ProgramError
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
