# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CPU provider, from torch's own ONNX export."""

from typing import Any

import numpy as np

from tvmattend.bench.peer_settings import onnxruntime_session
from tvmattend.bench.runtime import Arrays, Setup, timed


class Adapter:
    """Drives ONNX Runtime."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._path = setup.directory / "model.onnx"

    def convert(self) -> None:
        """Export in fp32, weights in the file."""
        import torch

        from tvmattend.bench.torch_network import example, torch_module

        module, shape = torch_module(self._setup.request)
        with torch.no_grad():
            torch.onnx.export(
                module,
                (example(shape),),
                self._path,
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    def prepare(self) -> None:
        """Load; see `peer_settings`."""
        import onnxruntime

        self._session = onnxruntime_session(str(self._path), self._setup.threads)
        self._version = str(onnxruntime.__version__)

    def version(self) -> str:
        """Give ONNX Runtime's version."""
        return self._version

    def feed(self, inputs: Arrays) -> None:
        """Bind the inputs, so that no run copies them."""
        self._binding = self._session.io_binding()
        for value, array in zip(self._session.get_inputs(), inputs, strict=True):
            self._binding.bind_cpu_input(value.name, np.ascontiguousarray(array))
        for value in self._session.get_outputs():
            self._binding.bind_output(value.name)

    def run(self) -> None:
        """Infer."""
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave."""
        return list(self._binding.copy_outputs_to_cpu())

    def time(self, count: int) -> list[float]:
        """Time inferences."""
        return timed(self.run, count)
