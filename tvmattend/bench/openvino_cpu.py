# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's CPU plugin, converted from PyTorch directly."""

from typing import Any

import numpy as np

from tvmattend.bench.runtime import Arrays, Setup, timed
from tvmattend.errors import BenchmarkError


class Adapter:
    """Drives OpenVINO."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._path = setup.directory / "model.xml"

    def convert(self) -> None:
        """Convert; the weights stay fp32 (saving compresses them to fp16 unless told)."""
        import openvino

        from tvmattend.bench.torch_network import example, torch_module

        module, shape = torch_module(self._setup.request)
        model = openvino.convert_model(module, example_input=example(shape), input=[shape])
        openvino.save_model(model, str(self._path), compress_to_fp16=False)

    def prepare(self) -> None:
        """Compile for latency, one stream, in fp32: on some CPUs its default is bf16.

        Raises:
            BenchmarkError: It did not take the precision or the threads.
        """
        import openvino

        threads = self._setup.threads
        compiled = openvino.Core().compile_model(
            str(self._path),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        precision = compiled.get_property("INFERENCE_PRECISION_HINT")
        used = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        if precision != openvino.Type.f32 or used != threads:
            raise BenchmarkError(f"OpenVINO took {precision} and {used} threads")
        self._request = compiled.create_infer_request()
        self._version = str(openvino.get_version()).split("-", 1)[0]

    def version(self) -> str:
        """Give OpenVINO's version."""
        return self._version

    def feed(self, inputs: Arrays) -> None:
        """Set the input tensors, which share the arrays' memory."""
        import openvino

        for place, array in enumerate(inputs):
            tensor = openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
            self._request.set_input_tensor(place, tensor)

    def run(self) -> None:
        """Infer."""
        self._request.infer()

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave."""
        return [np.array(tensor.data) for tensor in self._request.output_tensors]

    def time(self, count: int) -> list[float]:
        """Time inferences."""
        return timed(self.run, count)
