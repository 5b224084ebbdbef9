# SPDX-License-Identifier: Apache-2.0
"""Schedules -> linked libraries, in worker processes that stay.

MetaSchedule's `LocalBuilder` starts its workers anew for every batch, because they leak: 6 s of
importing TVM, and PyTorch with it, for a batch whose eight kernels compile in one. These are
replaced after so many kernels instead.
"""

from concurrent.futures import Future
from typing import Any

from tvmattend.codegen.link import Linker
from tvmattend.target import TargetSpec
from tvmattend.tuning import workers
from tvmattend.tuning.pools import Pool

_KERNELS_PER_PROCESS = 64


class KernelBuilder:
    """Builds kernels, as many at once as there are cores.

    Args:
        target: What to build for.
        linker: Links each kernel.
        directory: Where the libraries go.
        timeout: Seconds a kernel may take.
    """

    def __init__(self, target: TargetSpec, linker: Linker, directory: str, timeout: float) -> None:
        self._target = target.to_tvm()
        self._linker = linker
        self._directory = directory
        self._pool = Pool(timeout, uses=_KERNELS_PER_PROCESS)

    def begin(self, module: Any) -> Future[str]:
        """Begin to build a scheduled IRModule, when a process is free.

        Returns:
            The path of its library to be, or as `Pool.submit`; TVM may raise whatever it likes.
        """
        job = (module, self._target, self._directory, self._linker)
        building: Future[str] = self._pool.submit(workers.build_kernel, *job)
        return building

    def warm_up(self) -> None:
        """Build and link something trivial here, outside any kernel's time limit.

        A missing linker shows now, as its own error instead of a failure of every trial; and Zig's
        first link for a target takes 15 s, because it builds a C library.
        """
        import tvm
        from tvm import te

        source = te.placeholder((4,), name="source")
        func = te.create_prim_func([source, te.compute((4,), lambda i: source[i] + 1.0)])
        mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        workers.make_kernel(mod, self._target, self._directory, self._linker)

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._pool.end()
