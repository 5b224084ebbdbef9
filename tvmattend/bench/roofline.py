# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most, measured with two kernels of our own.

    peak       r[i] = r[i] * a + b in as many vector registers as the core has accumulators: nothing
               but fused multiply-adds, enough of them in flight to hide their latency
    bandwidth  r[i] = r[i] + x[...] over a buffer as large as the network's library, most of it
               weights: what streams through an inference, from whichever cache holds that much

Both are compiled by TVM for the bundle's own target and run on as many threads as the bundle, so
a kernel is measured against what the same compiler, threads and vectors can reach. The best of
many runs counts: a limit is what was reached once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedules.machines import machine_of
from tvmattend.target import TargetSpec

_STEPS, _UNROLL = 20_000, 8
_REPEATS = 40

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
    target: TargetSpec, footprint: int, run: Callable[[Callable[[], float]], float]
) -> Roofline:
    """Measure both limits for `target.num_cores` threads.

    Args:
        target: What the kernels are compiled for; a level of this machine.
        footprint: Bytes of the buffer that is streamed.
        run: Calls a function in the thread that owns TVM's pool, and gives its result.
    """
    import tvm

    machine, threads = machine_of(target.to_tvm()), target.num_cores
    lanes, registers = machine.lanes, machine.accumulators
    peak = _compile(
        _PEAK.format(
            threads=threads, lanes=lanes, registers=registers, steps=_STEPS, unroll=_UNROLL
        ),
        target,
    )
    block = lanes * _STREAMS
    length = max(1, footprint // (4 * threads * block)) * block
    stream = _compile(
        _BANDWIDTH.format(
            threads=threads, lanes=lanes, registers=_STREAMS, length=length, block=block
        ),
        target,
    )
    # Below 1 the sums stay finite and never become denormal.
    factor = tvm.runtime.tensor(np.full(lanes, 0.5, "float32"))
    data = tvm.runtime.tensor(np.full((threads, length), 0.5, "float32"))
    sums = tvm.runtime.tensor(np.zeros((threads, registers * lanes), "float32"))
    partial = tvm.runtime.tensor(np.zeros((threads, block), "float32"))
    seconds = run(lambda: _best(lambda: peak(factor, sums)))
    flops = 2.0 * lanes * registers * (_STEPS // _UNROLL * _UNROLL) * threads / seconds
    moved = 4 * threads * length
    return Roofline(flops, moved / run(lambda: _best(lambda: stream(data, partial))), moved)


def _compile(script: str, target: TargetSpec) -> Callable[..., Any]:
    import tvm
    from tvm.script import from_source

    function = from_source(script).with_attr("global_symbol", "main")
    main: Callable[..., Any] = tvm.compile(
        tvm.IRModule({"main": function}), target=target.to_tvm()
    )["main"]
    return main


def _best(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
