# SPDX-License-Identifier: Apache-2.0
"""ncnn, converted by its own pnnx."""

import os
from typing import Any

import numpy as np

from tvmattend.bench.peer_settings import ncnn_net
from tvmattend.bench.runtime import Arrays, Setup, timed
from tvmattend.errors import BenchmarkError


class Adapter:
    """Drives ncnn; it has no batch, so one image only."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._stem = setup.directory / "model"

    def convert(self) -> None:
        """Trace, and have pnnx write `.param` and `.bin` with fp32 weights.

        Raises:
            BenchmarkError: pnnx wrote nothing.
        """
        import pnnx

        from tvmattend.bench.torch_network import example, torch_module

        module, shape = torch_module(self._setup.request)
        if shape[0] != 1:
            raise BenchmarkError(f"ncnn takes one image at a time, not a batch of {shape[0]}")
        os.chdir(self._setup.directory)  # it leaves by-products where it stands
        pnnx.export(module, "./model.pt", example(shape), fp16=False)
        if not self._stem.with_suffix(".ncnn.bin").is_file():
            raise BenchmarkError("pnnx could not convert the network")

    def prepare(self) -> None:
        """Load in fp32; see `peer_settings`."""
        # ncnn's OpenMP is a copy of its own; it reads this once, when it is loaded.
        os.environ["OMP_NUM_THREADS"] = str(self._setup.threads)
        import ncnn

        self._ncnn = ncnn
        self._net = ncnn_net(self._setup.threads)
        if self._net.load_param(f"{self._stem}.ncnn.param") != 0:
            raise BenchmarkError("ncnn cannot load the network")
        if self._net.load_model(f"{self._stem}.ncnn.bin") != 0:
            raise BenchmarkError("ncnn cannot load the weights")

    def version(self) -> str:
        """Give ncnn's version."""
        return str(self._ncnn.__version__)

    def feed(self, inputs: Arrays) -> None:
        """Copy the inputs into ncnn's own aligned matrices."""
        self._mats = [self._ncnn.Mat(np.ascontiguousarray(array[0])).clone() for array in inputs]

    def run(self) -> None:
        """Infer."""
        extractor = self._net.create_extractor()
        for place, mat in enumerate(self._mats):
            extractor.input(f"in{place}", mat)
        results = [extractor.extract(name) for name in self._net.output_names()]
        if any(code != 0 for code, _ in results):
            raise BenchmarkError("ncnn failed in an inference")
        self._results = [mat for _, mat in results]

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave, with the batch that ncnn leaves out."""
        return [np.array(mat)[None] for mat in self._results]

    def time(self, count: int) -> list[float]:
        """Time inferences."""
        return timed(self.run, count)
