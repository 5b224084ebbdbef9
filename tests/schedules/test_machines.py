# SPDX-License-Identifier: Apache-2.0
"""A core's name and its flags -> the limits that bound its kernels."""

from dataclasses import replace

import pytest

from schedules.machines import AARCH64, CORTEX_A72, X86_64, X86_64_V3, X86_64_V4, machine_of
from tvmattend.target import parse_target


@pytest.mark.parametrize(
    ("machine", "cores"),
    [
        (X86_64, ("x86-64", "x86-64-v2", "nehalem", "sandybridge", "btver2")),
        (X86_64_V3, ("x86-64-v3", "haswell", "broadwell", "skylake", "raptorlake", "gracemont")),
        (X86_64_V3, ("bdver4", "znver1", "znver3")),
        (X86_64_V4, ("x86-64-v4", "skylake-avx512", "cascadelake", "tigerlake", "rocketlake")),
        (X86_64_V4, ("sapphirerapids", "graniterapids", "znver4", "znver5")),
    ],
)
def test_every_core_that_llvm_knows_has_the_vectors_it_has(machine, cores):
    for core in cores:
        spec = parse_target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={core}", 3)
        assert machine_of(spec.to_tvm()) == replace(machine, threads=3), core


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a72", "neoverse-n1", "generic"])
def test_every_arm_core_has_neon(core):
    spec = parse_target(f"llvm -mtriple=aarch64-linux-gnu -mcpu={core}", 4)
    wanted = CORTEX_A72 if core == "cortex-a72" else AARCH64
    assert machine_of(spec.to_tvm()) == replace(wanted, threads=4)


@pytest.mark.parametrize(
    ("core", "flag", "machine"),
    [
        ("x86-64-v4", "-avx512f", X86_64_V3),
        ("x86-64-v3", "-fma", X86_64),
        ("x86-64", "+avx2,+fma", X86_64_V3),
        ("x86-64-v3", "+avx512f", X86_64_V4),
    ],
)
def test_flags_count(core, flag, machine):
    spec = parse_target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={core} -mattr={flag}", 1)
    assert machine_of(spec.to_tvm()) == machine


def test_vectors_of_512_bits_are_not_split():
    """LLVM would for these cores, into twice as many sums as there are registers."""
    for core in ("x86-64-v4", "skylake-avx512", "tigerlake", "sapphirerapids"):
        spec = parse_target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={core}")
        assert spec.features == ("-prefer-256-bit",)
        assert spec.name == core
    assert parse_target("llvm -mtriple=x86_64-linux-gnu -mcpu=znver4").features == ()
