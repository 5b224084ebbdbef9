# SPDX-License-Identifier: Apache-2.0
"""What a machine can do at most, measured with two kernels of our own.

    peak       r[i] = r[i] * a + b in as many vector registers as the core has accumulators: nothing
               but fused multiply-adds, enough of them in flight to hide their latency
    bandwidth  r[i] = r[i] + x[...] over a buffer as large as the network's library, most of it
               weights: what streams through an inference, from whichever cache holds that much

Both are compiled by TVM for the bundle's own target and run on as many threads as the bundle, so
a kernel is measured against what the same compiler, threads and vectors can reach. The best of
many runs counts: a limit is what was reached once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schedules.machines import machine_of
from tvmattend.target import TargetSpec

if TYPE_CHECKING:
    import tvm

_STEPS, _UNROLL = 20_000, 8

# Text, not decorated Python: the script's parser would read this file's source, and a type checker
# the script.
_PEAK = """
@T.prim_func
def main(
    a: T.Buffer(({lanes},), "float32"), out: T.Buffer(({threads}, {registers} * {lanes}), "float32")
):
    T.func_attr({{"tirx.noalias": True}})
    for t in T.parallel({threads}):
        r = T.alloc_buffer(({registers} * {lanes},), scope="local")
        for i in T.unroll({registers}):
            for l in T.vectorized({lanes}):
                r[i * {lanes} + l] = a[l]
        for k in T.serial({steps} // {unroll}):
            for j in T.unroll({unroll}):
                for i in T.unroll({registers}):
                    for l in T.vectorized({lanes}):
                        r[i * {lanes} + l] = r[i * {lanes} + l] * a[0] + a[1]
        for i in T.unroll({registers}):
            for l in T.vectorized({lanes}):
                out[t, i * {lanes} + l] = r[i * {lanes} + l]
"""
_BANDWIDTH = """
@T.prim_func
def main(
    x: T.Buffer(({threads}, {length}), "float32"), out: T.Buffer(({threads}, {block}), "float32")
):
    T.func_attr({{"tirx.noalias": True}})
    for t in T.parallel({threads}):
        r = T.alloc_buffer(({block},), scope="local")
        for i in T.unroll({registers}):
            for l in T.vectorized({lanes}):
                r[i * {lanes} + l] = T.float32(0)
        for k in T.serial({length} // {block}):
            for i in T.unroll({registers}):
                for l in T.vectorized({lanes}):
                    r[i * {lanes} + l] = (
                        r[i * {lanes} + l] + x[t, k * {block} + i * {lanes} + l]
                    )
        for i in T.unroll({registers}):
            for l in T.vectorized({lanes}):
                out[t, i * {lanes} + l] = r[i * {lanes} + l]
"""
_STREAMS = 8  # vector loads in flight


@dataclass(frozen=True)
class Roofline:
    """The two limits.

    Attributes:
        flops: Floating-point operations a second, an FMA counting two.
        bandwidth: Bytes read a second.
        footprint: Bytes that the bandwidth was measured with.
    """

    flops: float
    bandwidth: float
    footprint: int

    def bound(self, flops: float, moved: float) -> tuple[str, float]:
        """Say what bounds a kernel, and the least seconds that it could take.

        Args:
            flops: Operations of a call.
            moved: Bytes that it reads and writes.
        """
        compute, memory = flops / self.flops, moved / self.bandwidth
        return ("compute", compute) if compute >= memory else ("memory", memory)


def measure(
    target: TargetSpec,
    footprint: int,
    least_seconds: Callable[["tvm.IRModule", Sequence[np.ndarray]], float],
) -> Roofline:
    """Measure both limits for `target.num_cores` threads.

    Args:
        target: What the kernels are for.
        footprint: Bytes of the buffer that is streamed.
        least_seconds: Compiles a module, calls its `main` with copies of the arrays on as many
            threads, many times, and gives what the fastest call took.
    """
    machine, threads = machine_of(target.to_tvm()), target.num_cores
    lanes, registers = machine.lanes, machine.accumulators
    peak = _PEAK.format(
        threads=threads, lanes=lanes, registers=registers, steps=_STEPS, unroll=_UNROLL
    )
    block = lanes * _STREAMS
    length = max(1, footprint // (4 * threads * block)) * block
    stream = _BANDWIDTH.format(
        threads=threads, lanes=lanes, registers=_STREAMS, length=length, block=block
    )
    # Below 1 the sums stay finite and never become denormal.
    factor = np.full(lanes, 0.5, "float32")
    data = np.full((threads, length), 0.5, "float32")
    sums = np.zeros((threads, registers * lanes), "float32")
    partial = np.zeros((threads, block), "float32")
    flops = 2.0 * lanes * registers * (_STEPS // _UNROLL * _UNROLL) * threads
    moved = 4 * threads * length
    return Roofline(
        flops / least_seconds(_module(peak), (factor, sums)),
        moved / least_seconds(_module(stream), (data, partial)),
        moved,
    )


def _module(script: str) -> "tvm.IRModule":
    import tvm
    from tvm.script import from_source

    return tvm.IRModule({"main": from_source(script).with_attr("global_symbol", "main")})
