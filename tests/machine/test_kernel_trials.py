# SPDX-License-Identifier: Apache-2.0
"""What the tuner gets of a kernel that fails or hangs."""

import subprocess
from pathlib import Path

import pytest

from tvmattend.machine.kernels import KernelTrial
from tvmattend.machine.tracing import ProgramError


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
