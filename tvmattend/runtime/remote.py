# SPDX-License-Identifier: Apache-2.0
"""The same network, executed on a board over TVM RPC.

It stands beside `network.py`, and not in it, because this side needs TVM itself, which no device
has. The board needs only its RPC server: `model.so` is uploaded, and lives as long as the session.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tvmattend.bundle.manifest import Manifest
from tvmattend.bundle.verify import verify
from tvmattend.device.board import BoardInfo, probe
from tvmattend.device.endpoint import Endpoint, close_session, connect, within
from tvmattend.device.tunnel import reached
from tvmattend.errors import (
    BoardMismatchError,
    BoardUnreachableError,
    BundleError,
    BundleMismatchError,
    InputError,
)
from tvmattend.runtime.network import BundleError as DamagedError
from tvmattend.runtime.network import Network, file_content
from tvmattend.target import TargetSpec

# An emulated board needs some ten seconds for a forward of the largest network.
STEP_SECONDS = 600.0

_Result = TypeVar("_Result")


class RemoteNetwork(Network):
    """A bundle on a board; `board` says what that is."""

    def __init__(
        self, directory: Path, manifest: dict[str, Any], executor: "_BoardVM", board: BoardInfo
    ) -> None:
        super().__init__(directory, manifest, executor)
        self.board = board


@contextmanager
def load_remote(
    path: str | Path,
    endpoint: Endpoint | str,
    threads: int | None = None,
    require_signature: Any = None,
) -> Iterator[RemoteNetwork]:
    """Give a bundle as a network that runs on a board; the session ends with the context.

    Args:
        path: The bundle's directory.
        endpoint: A server or tracker, or `host:port` or `ssh://user@host` of a server.
        threads: Threads that run the kernels; by default as many as the bundle was compiled for,
            or as the board offers if those are fewer.
        require_signature: A public key that must have signed the bundle; see `load`. The board
            trusts what it is sent: the signature is checked on this side.

    Raises:
        BundleError: The bundle is damaged.
        SignatureError: The signature is missing or another's, or the key cannot be read.
        BoardUnreachableError: Nothing answers there, or it stopped answering.
        NoFreeBoardError: The tracker has no board free.
        BoardMismatchError: The board cannot run code for the bundle's target.
        BundleMismatchError: The board's TVM is of another version.
        InputError: More threads than the board offers.
    """
    directory = Path(path)
    manifest = verify(directory, require_signature)
    with ExitStack() as stack:
        place = stack.enter_context(reached(endpoint)) if isinstance(endpoint, str) else endpoint
        yield from _sessions(directory, manifest, place, threads)


def _sessions(
    directory: Path, manifest: Manifest, place: Endpoint, threads: int | None
) -> Iterator[RemoteNetwork]:
    """Give the network once, in a session that is closed then."""
    board = _probe(place, manifest.target)
    vm = manifest.format == "vm"
    if vm and board.tvm_version and board.tvm_version != manifest.versions.tvm:
        raise BundleMismatchError(
            f"the bundle needs TVM {manifest.versions.tvm}; {place} serves {board.tvm_version}",
            "install that version on the board, or build the bundle again",
        )
    if manifest.libc != "glibc":
        raise BundleMismatchError(
            f"the bundle is for {manifest.libc}; TVM's RPC server, on {place}, runs with glibc",
            "build with --libc glibc to run it there",
        )
    session = connect(place)
    try:
        make = _BoardVM if vm else _BoardLibrary
        executor = make(session, place, directory, threads, manifest)
        yield RemoteNetwork(directory, manifest.to_json(), executor, board)
    finally:
        close_session(session)


def _probe(place: Endpoint, target: TargetSpec) -> BoardInfo:
    try:
        return probe(place, target)
    except BoardMismatchError as error:
        # Here the user gave a bundle, not a target.
        hint = f"the bundle is for {target.describe()}; build one for the board"
        raise BoardMismatchError(str(error), hint) from error


class _BoardVM:
    """The Relax virtual machine of one bundle, in the session's process on the board.

    Calling `vm["main"](x)` fails over RPC, because a result that is an object cannot come back;
    `set_input`, `invoke_stateful` and `get_outputs` leave it on the board and fetch tensors.
    """

    def __init__(
        self,
        session: Any,
        place: Endpoint,
        directory: Path,
        threads: int | None,
        manifest: Manifest,
    ) -> None:
        self._session = session
        self._place = place
        self._manifest = manifest
        try:  # what is checked here is what is sent
            files = manifest.to_json()["files"]
            self._code = file_content(directory, manifest.library, files)
        except DamagedError as error:
            raise BundleError(str(error), error.hint) from error
        self.threads = self._step(lambda: self._size_pool(threads, manifest.threads))
        self._machine = self._step(self._start)
        del self._code

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return self._step(lambda: self._run(inputs))

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        return self._step(lambda: self._time(inputs, repeat, warmup))

    def _size_pool(self, threads: int | None, wanted: int) -> int:
        offered = int(self._session.get_function("runtime.NumThreads")())
        count = min(wanted, offered) if threads is None else threads
        if count != offered:
            # Mode 1: the big cores. A pool cannot grow beyond what its server started with.
            self._session.get_function("runtime.config_threadpool")(1, count)
            if int(self._session.get_function("runtime.NumThreads")()) != count:
                raise InputError(
                    f"threads={count}, but {self._place} offers {offered}",
                    "TVM_NUM_THREADS, set where the server starts, raises what it offers",
                )
        return count

    def _start(self) -> Any:
        from tvm import relax

        return relax.VirtualMachine(self._load(), self._session.cpu())

    def _load(self) -> Any:
        # A fresh name: replacing a library that is loaded crashes the session.
        name = f"model-{uuid.uuid4().hex}.so"
        self._session.upload(bytearray(self._code), name)
        module = self._session.load_module(name)
        self._session.remove(name)  # the loaded code stays; the board's disk is free again
        return module

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self._set(inputs)
        self._machine.invoke_stateful("main")
        outputs = self._machine.get_outputs("main")
        return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else [outputs])]

    def _time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        self._set(inputs)
        for _ in range(warmup):
            self._machine.invoke_stateful("main")
        # The board takes the time itself: no round trip is in it.
        evaluate = self._machine.time_evaluator(
            "invoke_stateful", self._session.cpu(), number=1, repeat=repeat
        )
        return [float(seconds) for seconds in evaluate("main").results]

    def _set(self, inputs: list[np.ndarray]) -> None:
        from tvm.runtime import tensor

        device = self._session.cpu()
        self._machine.set_input("main", *(tensor(array, device) for array in inputs))

    def _step(self, action: Callable[[], _Result]) -> _Result:
        try:
            return within(STEP_SECONDS, action)
        except TimeoutError as error:
            raise BoardUnreachableError(
                f"{self._place}: the board did not answer for {STEP_SECONDS:g} s",
                "restart the server on the board",
            ) from error
        except RuntimeError as error:  # what TVM's client raises
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise BoardUnreachableError(
                f"{self._place}: the session broke: {lines[-1] if lines else 'no reason given'}",
                "restart the server on the board, and see whether its disk or memory is full",
            ) from error


class _BoardLibrary(_BoardVM):
    """A standalone library in the session's process: the server calls the door in it.

    `<prefix>_rpc(threads, inputs..., outputs...)` gives the status of `<prefix>_run`.
    """

    def _start(self) -> Any:
        from tvm.runtime import tensor

        self._module = self._load()
        library = self._manifest.library
        self._name = f"{library.removeprefix('lib').removesuffix('.so')}_rpc"
        device = self._session.cpu()
        self._outputs = [
            tensor(np.zeros(spec.shape, spec.dtype), device) for spec in self._manifest.outputs
        ]
        return self._module.get_function(self._name)

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self._set(inputs)
        status = int(self._machine(self.threads, *self._inputs, *self._outputs))
        if status != 0:
            raise BundleMismatchError(
                f"{self._place}: the library refused to run, with status {status}",
                f"{self._name.removesuffix('_rpc')}.h says what the number means",
            )
        return [output.numpy() for output in self._outputs]

    def _time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        for _ in range(warmup + 1):
            self._run(inputs)
        # The board takes the time itself: no round trip is in it.
        evaluate = self._module.time_evaluator(
            self._name, self._session.cpu(), number=1, repeat=repeat
        )
        arguments = (self.threads, *self._inputs, *self._outputs)
        return [float(seconds) for seconds in evaluate(*arguments).results]

    def _set(self, inputs: list[np.ndarray]) -> None:
        from tvm.runtime import tensor

        self._inputs = [tensor(array, self._session.cpu()) for array in inputs]
