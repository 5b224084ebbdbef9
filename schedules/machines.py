# SPDX-License-Identifier: Apache-2.0
"""What a schedule must know of a core: vector length, registers, first-level cache."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

# Of NEON, in fp32; also SSE's, for which no rules of its own are worth while.
ARM_LANES = 4


@dataclass(frozen=True)
class Machine:
    """The limits that bound a register block.

    Attributes:
        lanes: fp32 elements in one vector register.
        accumulators: Vector registers that may hold accumulators; the others feed them.
        registers: What a block's accumulators, its vectors and a scalar to multiply them with must
            fit in together. None for 32 registers, where the accumulators alone are the limit.
        l1_bytes: First-level data cache of one core.
        weights_a_load: Consecutive scalars that one load brings to multiply-adds: a vector of them
            where these take an element of a register, one where they broadcast from memory.
        in_flight: Multiply-adds of vectors that must be under way for none to be waited for: the
            cycles of one times how many begin in a cycle (Zen 3 to 5: 4 x 2; Cortex-A72: 7 x 1).
        spill: Relative cost of each doubling of a working set beyond the first-level cache.
        weights_wait: Multiply-adds of vectors that a core does while one vector of weights comes
            from memory. Decides how much a Winograd transform may enlarge packed weights; 0 where
            kernels transform them.
        chains: Registers of an activation that a round of a loop computes side by side behind a
            Winograd convolution. More than four were measured on a Cortex-A72 only.
        l2_bytes: Second-level cache that a core has for itself; 0 where cores share one.
        transform: Multiply-adds of vectors that a core does while it makes one vector of one of
            Winograd's points along the rows, with its store and its load.
        turn: Multiply-adds of vectors that a core does while it moves one number to another layout:
            between what a kernel of its own takes and a block that reads the other layout in place.
        threads: Cores that run a kernel together.
    """

    lanes: int
    accumulators: int
    l1_bytes: int
    registers: int | None = None
    weights_a_load: int = 1
    in_flight: int = 8
    spill: float = 0.01
    weights_wait: float = 0.0
    chains: int = 4
    l2_bytes: int = 0
    transform: float = 4.5
    turn: float = 0.5
    threads: int = 1

    def holds(self, scalars: int, vectors: int) -> bool:
        """Whether a register block of scalars x vectors fits."""
        block = scalars * vectors
        fed = block + vectors + 1
        return block <= self.accumulators and (self.registers is None or fed <= self.registers)

    def stall(self, scalars: int, vectors: int, across: float = 1.0) -> float:
        """Cycles of a step of a register block beyond its multiply-adds', as a share of those.

        All cores here begin as many loads in a cycle as multiply-adds.

        Args:
            scalars: Of the block, each loaded once a step.
            vectors: Of the block, likewise.
            across: Loads of a vector; more than one where it lies across a boundary.
        """
        products = scalars * vectors
        loads = across * vectors + math.ceil(scalars / self.weights_a_load)
        return max(loads, self.in_flight, products) / products - 1


# 32 NEON registers of 4 lanes. Of a Cortex-A72 the L1D holds 32 KB (Arm TRM 100095, section 6) and
# the L2 gives one core 8 bytes a cycle, an eighth of what Zen 5's does. DRAM gives all cores of a
# Raspberry Pi 4 together 4 bytes a nanosecond: 16 bytes in 7.3 cycles of 1.8 GHz. `transform` is
# fitted to estimates of 3x3 convolutions; a change of layout is estimated at 12 cycles a number
# from L2, and at 1.5 if all is in L1 (benchmarks/NOTES.md, "Fusion").
CORTEX_A72 = Machine(
    lanes=ARM_LANES,
    accumulators=24,
    l1_bytes=32 * 1024,
    weights_a_load=4,
    in_flight=7,
    spill=0.07,
    weights_wait=7.3,
    chains=8,
    transform=13.0,
    turn=4.0,
)
# Any other Arm core has NEON's registers, and two pipelines of four cycles if it is a newer one
# (Cortex-A76 software optimization guide). Nobody here measured one: it is taken to share a cache
# and to wait for DRAM as a Cortex-A72 does.
AARCH64 = replace(CORTEX_A72, in_flight=8)
# 32 registers of 16 lanes (AVX-512) and 16 of 8 (AVX2); 32 KB is the smallest L1D of either level.
# L2: Zen 3's, where its use was measured; Haswell has half, cores with AVX-512 as much or more.
# `transform`: what `residual` takes beyond products and SiLU on a Zen 4 core (NOTES, likewise).
X86_64_V4 = Machine(lanes=16, accumulators=28, l1_bytes=32 * 1024, l2_bytes=512 * 1024)
X86_64_V3 = Machine(lanes=8, accumulators=14, l1_bytes=32 * 1024, registers=16, l2_bytes=512 * 1024)
# SSE has no fused multiply-add and 16 registers of 4 lanes.
X86_64 = Machine(lanes=4, accumulators=12, l1_bytes=32 * 1024, registers=16, l2_bytes=256 * 1024)


def machine_of(target: Any) -> Machine:
    """Limits of a TVM target's core.

    Args:
        target: A `tvm.target.Target` of kind `llvm`.
    """
    attrs = target.attrs
    triple, cpu = str(attrs.get("mtriple", "")), str(attrs.get("mcpu", ""))
    core = _core(triple, cpu, tuple(str(flag) for flag in attrs.get("mattr", ())))
    return replace(core, threads=int(attrs.get("num-cores", 1)))


@cache
def _core(triple: str, cpu: str, flags: tuple[str, ...]) -> Machine:
    """By what LLVM knows of a core, hundreds of which have names."""
    if triple.startswith("aarch64"):
        return CORTEX_A72 if cpu == "cortex-a72" else AARCH64
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_cpu_features

    target = Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu, "mattr": list(flags)})
    features = {str(name) for name in llvm_get_cpu_features(target)}
    if "avx512f" in features:
        return X86_64_V4
    return X86_64_V3 if {"avx2", "fma"} <= features else X86_64
