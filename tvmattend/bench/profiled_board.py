# SPDX-License-Identifier: Apache-2.0
"""A standalone bundle on a board over RPC, for a profile: the library times its own steps there."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.bench.profiled import Call, Inference, Observer, Seen
from tvmattend.codegen.link import Linker
from tvmattend.errors import compiling

if TYPE_CHECKING:
    import numpy as np
    import tvm

    from tvmattend.runtime.remote import RemoteNetwork
    from tvmattend.target import TargetSpec

_REPEATS = 10


class ProfiledBoard:
    """A network on a board; see `Profiled`."""

    def __init__(self, network: "RemoteNetwork") -> None:
        self.threads = network.threads
        self.machine = network.board.to_json()
        self.machine_text = network.board.describe()
        self.notes = network.board.notes
        self._network = network

    def look(self, runs: int, observer: Observer) -> Seen:
        """Time so many inferences."""
        inputs = self._network.golden()[0][0]
        observer("timing kernels in the inference, on the board")
        found = self._network.profile(*inputs, runs=runs)
        inside = [Inference([Call(*step) for step in steps]) for steps, _ in found]
        return Seen(inside, inside, [whole for _, whole in found])

    def least_seconds(
        self, module: "tvm.IRModule", arrays: "Sequence[np.ndarray[Any, Any]]", target: "TargetSpec"
    ) -> float:
        """Compile a module, and give the least seconds of a call of its `main` on the board."""
        import tvm

        with tempfile.TemporaryDirectory(prefix="tvmattend-profile-") as directory:
            library = Path(directory) / "kernel.so"
            with compiling(f"a kernel for {target.describe()}", "run again with --debug"):
                executable = tvm.compile(module, target=target.to_tvm())
            executable.export_library(
                str(library), fcompile=Linker(target), workspace_dir=directory
            )
            return self._network.time_kernel(library.read_bytes(), list(arrays), _REPEATS)

    def others(self) -> float | None:
        """Nobody asks the board for that."""
        return None
