# SPDX-License-Identifier: Apache-2.0
"""PyTorch as it is, in the faster of its two layouts."""

from typing import Any

import numpy as np
import torch

from tvmattend.bench.runtime import Arrays, Setup, timed
from tvmattend.bench.torch_network import flat, torch_module


class Adapter:
    """Drives PyTorch's eager mode.

    Channels last: oneDNN's own layout, in which AttendNeXt takes two thirds of the time that the
    default layout takes. Whoever picks PyTorch for speed finds it on the first page.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def convert(self) -> None:
        """Nothing to write: PyTorch runs the module itself."""

    def prepare(self) -> None:
        """Make the module."""
        torch.set_num_threads(self._setup.threads)
        module, _ = torch_module(self._setup.request)
        self._call: Any = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def version(self) -> str:
        """Give PyTorch's version."""
        return torch.__version__

    def feed(self, inputs: Arrays) -> None:
        """Lay the inputs out channels last where they are images."""
        self._inputs = [_channels_last(torch.from_numpy(array)) for array in inputs]

    def run(self) -> None:
        """Infer."""
        with torch.inference_mode():
            self._result = self._call(*self._inputs)

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave."""
        return flat(self._result)

    def time(self, count: int) -> list[float]:
        """Time inferences."""
        return timed(self.run, count)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    image = tensor.ndim == 4
    return tensor.contiguous(memory_format=torch.channels_last) if image else tensor
