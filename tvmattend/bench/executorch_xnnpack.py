# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch with the XNNPACK delegate, as its documentation lowers a network for CPUs."""

from importlib import metadata
from typing import Any

import numpy as np

from tvmattend.bench.runtime import Arrays, Setup, timed
from tvmattend.errors import BenchmarkError


class Adapter:
    """Drives ExecuTorch."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._path = setup.directory / "model.pte"

    def convert(self) -> None:
        """Export, delegate to XNNPACK what it takes, and write the program."""
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from tvmattend.bench.torch_network import example, torch_module

        module, shape = torch_module(self._setup.request)
        program = torch.export.export(module, (example(shape),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        self._path.write_bytes(lowered.to_executorch().buffer)

    def prepare(self) -> None:
        """Load, with a pool of that many threads.

        Raises:
            BenchmarkError: The pool has another size.
        """
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        # It takes all cores that it sees; its only way to fewer is a new pool.
        portable_lib._unsafe_reset_threadpool(self._setup.threads)  # noqa: SLF001
        used = portable_lib._threadpool_get_thread_count()  # noqa: SLF001
        if used != self._setup.threads:
            raise BenchmarkError(f"ExecuTorch runs {used} threads")
        self._program = Runtime.get().load_program(str(self._path))
        self._method = self._program.load_method("forward")

    def version(self) -> str:
        """Give ExecuTorch's version."""
        return metadata.version("executorch")

    def feed(self, inputs: Arrays) -> None:
        """Make tensors of the arrays, in place."""
        import torch

        self._inputs = [torch.from_numpy(array) for array in inputs]

    def run(self) -> None:
        """Infer."""
        self._results = self._method.execute(self._inputs)

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave."""
        return [tensor.detach().numpy().copy() for tensor in self._results]

    def time(self, count: int) -> list[float]:
        """Time inferences."""
        return timed(self.run, count)
