# SPDX-License-Identifier: Apache-2.0
"""torch.compile with Inductor's C++ back end, weights frozen: its fast settings on a CPU."""

import os
from typing import Any

import torch

from tvmattend.bench import torch_eager
from tvmattend.bench.runtime import Setup
from tvmattend.bench.torch_network import example, torch_module


class Adapter(torch_eager.Adapter):
    """Drives torch.compile.

    Frozen weights fold BatchNorm and pack the convolutions' weights; the C++ wrapper takes
    Python out of the calls between kernels. Both are documented options that need no change of
    the network.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        # Compiled kernels would otherwise be kept in a directory that all runs share.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(setup.directory / "inductor")

    def prepare(self) -> None:
        """Compile for the threads of the setup; takes a minute on one core."""
        super().prepare()
        import torch._inductor.config as inductor

        inductor.freezing = True
        inductor.cpp_wrapper = True
        self._call = torch.compile(self._call, fullgraph=True)
        _, shape = torch_module(self._setup.request)
        self.feed([example(shape).numpy()])
        self.run()

    def run(self) -> None:
        """Infer; freezing asks for no_grad and refuses inference mode."""
        with torch.no_grad():
            self._result: Any = self._call(*self._inputs)
