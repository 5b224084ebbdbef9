# SPDX-License-Identifier: Apache-2.0
"""Linear layer: y[m, o, l] = sum over k of x[m, k] * w[o, k, l], output features in vectors.

At batch 1 every weight is used once, so the kernel is bound by streaming them; packing makes each
register block read one contiguous stream.
"""

from typing import Any

from schedules import blocks
from schedules.machines import Machine
from schedules.space import Choose, Knob, Part
from schedules.stages import Stage

NAME = "dense"

# They hide the latency of a fused multiply-add on two ports (4 cycles x 2).
_ACCUMULATORS = 8


def dense(x: Any, weight: Any, features: int) -> Any:
    """The computation.

    Args:
        x: te.Tensor [M, K].
        weight: te.Tensor [O, K, L], packed by `pack`.
        features: Output features before padding to O * L.

    Returns:
        te.Tensor [M, features].
    """
    from tvm import te

    rows = int(x.shape[0])
    outer, depth, lanes = (int(extent) for extent in weight.shape)
    k = te.reduce_axis((0, depth), "k")
    acc = te.compute(
        (rows, outer, lanes),
        lambda m, o, lane: te.sum(x[m, k] * weight[o, k, lane], axis=[k]),
        name=NAME,
    )
    return te.compute((rows, features), lambda m, f: acc[m, f // lanes, f % lanes], name="columns")


def pack(weight: Any, machine: Machine) -> Any:
    """Array [K, N] -> [O, K, L]; more than seven vectors are rounded up to a multiple of eight."""
    import numpy as np

    depth, features = weight.shape
    outer = -(-features // machine.lanes)
    outer = outer if outer < _ACCUMULATORS else -(-outer // _ACCUMULATORS) * _ACCUMULATORS
    padded = np.zeros((depth, outer * machine.lanes), dtype=weight.dtype)
    padded[:, :features] = weight
    return padded.reshape(depth, outer, machine.lanes).transpose(1, 0, 2).copy()


def part(sch: Any, stage: Stage, machine: Machine) -> Part:
    """Vectors in a register block, unrolling, and how many blocks make a job."""
    assert stage.anchor is not None  # noqa: S101  (the registry asks for a family by its anchor)
    iters = sch.get(sch.get_sblock(stage.anchor, func_name="main")).iter_vars
    rows, outer, _, depth = (int(var.dom.extent) for var in iters)
    row_tile = max(step for step in blocks.divisors(rows, 4))
    few = outer < _ACCUMULATORS
    choices = blocks.divisors(outer) if few else (1, 2, 4, _ACCUMULATORS)
    vectors = tuple(v for v in choices if v * row_tile <= machine.accumulators)
    jobs = (1,) if few else tuple(blocks.divisors(outer // _ACCUMULATORS, 8))
    knobs = (
        Knob("vectors", vectors, vectors[-1] if row_tile == 1 else vectors[len(vectors) // 2]),
        Knob("unroll", tuple(blocks.divisors(depth, 4)), 1),
        Knob("jobs", jobs, jobs[-1]),
    )

    def schedule(sch: Any, choose: Choose) -> None:
        block, out = (sch.get_sblock(name, func_name="main") for name in (stage.anchor, stage.out))
        m, o, lane, k = sch.get_loops(block)
        job, o_out, o_in = sch.split(o, [choose("jobs"), None, choose("vectors")])
        m_out, m_in = sch.split(m, [None, row_tile])
        k_out, k_in = sch.split(k, [None, choose("unroll")])
        sch.reorder(job, m_out, o_out, k_out, k_in, m_in, o_in, lane)
        sch.unroll(k_in)
        sch.parallel(job)
        blocks.accumulate_in_registers(sch, block, o_out, k_out, [m_in, o_in, lane])
        blocks.vectorize_innermost(sch, out, machine.lanes)

    return Part(knobs, schedule)
