# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TensorFlow Lite) with its XNNPACK delegate, converted by its own PyTorch converter."""

from typing import Any

import numpy as np

from tvmattend.bench.runtime import Arrays, Setup, timed


class Adapter:
    """Drives LiteRT."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._path = setup.directory / "model.tflite"

    def convert(self) -> None:
        """Convert in fp32."""
        import litert_torch

        from tvmattend.bench.torch_network import example, torch_module

        module, shape = torch_module(self._setup.request)
        litert_torch.convert(module, (example(shape),)).export(str(self._path))

    def prepare(self) -> None:
        """Load; XNNPACK is on by default."""
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(self._path), num_threads=self._setup.threads)
        self._interpreter.allocate_tensors()
        self._version = str(ai_edge_litert.__version__)

    def version(self) -> str:
        """Give LiteRT's version."""
        return self._version

    def feed(self, inputs: Arrays) -> None:
        """Copy the inputs into LiteRT's tensors."""
        for detail, array in zip(self._interpreter.get_input_details(), inputs, strict=True):
            self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(array))

    def run(self) -> None:
        """Infer."""
        self._interpreter.invoke()

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave."""
        details = self._interpreter.get_output_details()
        return [self._interpreter.get_tensor(detail["index"]) for detail in details]

    def time(self, count: int) -> list[float]:
        """Time inferences."""
        return timed(self.run, count)
