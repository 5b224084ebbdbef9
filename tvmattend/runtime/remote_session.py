# SPDX-License-Identifier: Apache-2.0
"""The other half of `remote.py`: what its worker process does, with a session to the board.

One process has one session and one network. Arguments and results are plain data.
"""

import uuid
from typing import Any, cast

import numpy as np

from tvmattend.bundle.manifest import Manifest
from tvmattend.device.board import BoardInfo, examine
from tvmattend.device.endpoint import Endpoint, close_session, open_session, request_board
from tvmattend.device.sending import send
from tvmattend.errors import BundleMismatchError, InputError
from tvmattend.target import TargetSpec

# For a line for each step of a library, its name and nanoseconds, before their length is known.
_REPORT_BYTES = 1 << 16
_WRONG_COUNT = 2  # <MODEL>_WRONG_COUNT
_MALFORMED = 100  # of rpc.c alone; no header has it

# The worker's only session, and the network in it.
_SESSIONS: list[Any] = []
_HERE: list["_BoardVM"] = []


def reach(place: Endpoint, probe: bytearray, target: TargetSpec) -> BoardInfo:
    """Begin the session and say what the board is; see `examine`. A tracker's has its address."""
    board, match_key = place, ""
    if place.key:
        host, port, match_key = request_board(place)
        board = Endpoint(host, port, name=f"{Endpoint(host, port)} ({place})")
    _SESSIONS.append(open_session(board, match_key))
    return examine(_SESSIONS[0], probe, board, target)


def open_network(place: Endpoint, code: bytes, manifest: Manifest, threads: int | None) -> int:
    """Load the network on the board; gives the threads that run its kernels."""
    make = _BoardVM if manifest.format == "vm" else _BoardLibrary
    _HERE.append(make(_SESSIONS[0], place, code, manifest, threads))
    return _HERE[0].threads


def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Give the outputs of one inference."""
    return _HERE[0].run(inputs)


def time(inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
    """Give the seconds of inferences, by the board's clock."""
    return _HERE[0].time(inputs, repeat, warmup)


def profile(inputs: list[np.ndarray], runs: int) -> list[tuple[list[tuple[str, float]], float]]:
    """Give for each run the seconds of its steps by name, and those of a whole inference."""
    return cast("_BoardLibrary", _HERE[0]).profile(inputs, runs)


def time_kernel(code: bytes, arrays: list[np.ndarray], repeat: int) -> float:
    """Give the least seconds of a call of `main` in another library."""
    return _HERE[0].time_kernel(code, arrays, repeat)


def close() -> None:
    """End the session."""
    for session in _SESSIONS:
        close_session(session)


class _BoardVM:
    """The Relax virtual machine of one bundle, in the session's process on the board.

    Calling `vm["main"](x)` fails over RPC, because a result that is an object cannot come back;
    `set_input`, `invoke_stateful` and `get_outputs` leave it on the board and fetch tensors.
    """

    def __init__(
        self,
        session: Any,
        place: Endpoint,
        code: bytes,
        manifest: Manifest,
        threads: int | None,
    ) -> None:
        self.session = session
        self._place = place
        self._manifest = manifest
        self.threads = self._size_pool(threads, manifest.threads)
        self._machine = self._start(code)

    def _size_pool(self, threads: int | None, wanted: int) -> int:
        offered = int(self.session.get_function("runtime.NumThreads")())
        count = min(wanted, offered) if threads is None else threads
        if count != offered:
            # Mode 1: the big cores. A pool cannot grow beyond what its server started with.
            self.session.get_function("runtime.config_threadpool")(1, count)
            if int(self.session.get_function("runtime.NumThreads")()) != count:
                raise InputError(
                    f"threads={count}, but {self._place} offers {offered}",
                    "TVM_NUM_THREADS, set where the server starts, raises what it offers",
                )
        return count

    def _start(self, code: bytes) -> Any:
        from tvm import relax

        return relax.VirtualMachine(self._load(code), self.session.cpu())

    def _load(self, code: bytes) -> Any:
        # A fresh name: replacing a library that is loaded crashes the session.
        name = f"model-{uuid.uuid4().hex}.so"
        send(self.session, self._place, code, name)
        module = self.session.load_module(name)
        self.session.remove(name)  # the loaded code stays; the board's disk is free again
        return module

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self._set(inputs)
        self._machine.invoke_stateful("main")
        outputs = self._machine.get_outputs("main")
        return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else [outputs])]

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        self._set(inputs)
        for _ in range(warmup):
            self._machine.invoke_stateful("main")
        # The board takes the time itself: no round trip is in it.
        evaluate = self._machine.time_evaluator(
            "invoke_stateful", self.session.cpu(), number=1, repeat=repeat
        )
        return [float(seconds) for seconds in evaluate("main").results]

    def time_kernel(self, code: bytes, arrays: list[np.ndarray], repeat: int) -> float:
        from tvm.runtime import tensor

        module, device = self._load(code), self.session.cpu()
        evaluate = module.time_evaluator("main", device, number=1, repeat=repeat)
        return float(min(evaluate(*(tensor(array, device) for array in arrays)).results))

    def _set(self, inputs: list[np.ndarray]) -> None:
        from tvm.runtime import tensor

        device = self.session.cpu()
        self._machine.set_input("main", *(tensor(array, device) for array in inputs))


class _BoardLibrary(_BoardVM):
    """A standalone library in the session's process: the server calls the door in it.

    `<prefix>_rpc(threads, inputs..., outputs...)` gives the status of `<prefix>_run`; with a tensor
    of bytes behind them it runs once more and writes what each step took into that.
    """

    def _start(self, code: bytes) -> Any:
        from tvm.runtime import tensor

        self._module = self._load(code)
        library = self._manifest.library
        self._name = f"{library.removeprefix('lib').removesuffix('.so')}_rpc"
        device = self.session.cpu()
        self._outputs = [
            tensor(np.zeros(spec.shape, spec.dtype), device) for spec in self._manifest.outputs
        ]
        return self._module.get_function(self._name)

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self._set(inputs)
        self._call()
        return [output.numpy() for output in self._outputs]

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        self._set(inputs)
        for _ in range(warmup):
            self._call()
        return self._whole(repeat)

    def profile(
        self, inputs: list[np.ndarray], runs: int
    ) -> list[tuple[list[tuple[str, float]], float]]:
        from tvm.runtime import tensor

        self._set(inputs)
        size, found = _REPORT_BYTES, []
        for _ in range(runs):
            report = tensor(np.zeros(size, "uint8"), self.session.cpu())
            self._call(report)
            text = bytes(report.numpy()).split(b"\0")[0]
            parts = [line.rsplit(" ", 1) for line in text.decode().splitlines()]
            steps = [(name, 1e-9 * int(nanoseconds)) for name, nanoseconds in parts]
            found.append((steps, self._whole(1)[0]))
            # All of it comes over the link each time. Another run's times may have more digits.
            size = len(text) + 10 * len(parts) + 1
        return found

    def _whole(self, repeat: int) -> list[float]:
        # The board takes the time itself: no round trip is in it.
        evaluate = self._module.time_evaluator(
            self._name, self.session.cpu(), number=1, repeat=repeat
        )
        arguments = (self.threads, *self._inputs, *self._outputs)
        return [float(seconds) for seconds in evaluate(*arguments).results]

    def _call(self, *report: Any) -> None:
        status = int(self._machine(self.threads, *self._inputs, *self._outputs, *report))
        if report and status == _WRONG_COUNT:
            raise BundleMismatchError(
                f"{self._place}: the library is too old to tell its steps' times",
                "build the bundle again",
            )
        if status != 0:
            raise BundleMismatchError(
                f"{self._place}: the library refused to run, with status {status}",
                "its door for RPC takes a number of threads and tensors of the CPU, with room for "
                "all steps if they are timed: report it"
                if status == _MALFORMED
                else f"{self._name.removesuffix('_rpc')}.h says what the number means",
            )

    def _set(self, inputs: list[np.ndarray]) -> None:
        from tvm.runtime import tensor

        self._inputs = [tensor(array, self.session.cpu()) for array in inputs]
