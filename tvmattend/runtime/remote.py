# SPDX-License-Identifier: Apache-2.0
"""The same network, executed on a board over TVM RPC.

It stands beside `network.py`, and not in it, because this side needs TVM itself, which no device
has. The board needs only its RPC server: `model.so` is uploaded, and lives as long as the session.

TVM's client is in a process of its own (`device.killable`), which also has the session: a board
that is silent, or that answers nonsense, costs that process and not this one.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.bundle.manifest import Manifest
from tvmattend.bundle.verify import verify
from tvmattend.device.board import BoardInfo, ask_of, probe
from tvmattend.device.endpoint import Endpoint, close_session, connect
from tvmattend.device.killable import ANSWER_SECONDS, KillableWorker
from tvmattend.device.sending import send
from tvmattend.device.serving.wire import LONGEST_SECONDS
from tvmattend.device.tunnel import reached
from tvmattend.errors import (
    BoardMismatchError,
    BoardUnreachableError,
    BundleError,
    BundleMismatchError,
    InputError,
    TvmattendError,
)
from tvmattend.runtime.network import BundleError as DamagedError
from tvmattend.runtime.network import Network, file_content
from tvmattend.target import TargetSpec

# All timed runs are one answer, which may take so many times as long as the first run made expect.
_PATIENCE = 3.0
_CLOSE_SECONDS = 3.0


class RemoteNetwork(Network):
    """A bundle on a board; `board` says what that is."""

    def __init__(
        self, directory: Path, manifest: dict[str, Any], executor: "_Executor", board: BoardInfo
    ) -> None:
        super().__init__(directory, manifest, executor)
        self.board = board


@contextmanager
def load_remote(
    path: str | Path,
    endpoint: Endpoint | str,
    threads: int | None = None,
    require_signature: Any = None,
    timeout: float = ANSWER_SECONDS,
) -> Iterator[RemoteNetwork]:
    """Give a bundle as a network that runs on a board; the session ends with the context.

    Args:
        path: The bundle's directory.
        endpoint: A server or tracker, or `host:port` or `ssh://user@host` of a server.
        threads: Threads that run the kernels; by default as many as the bundle was compiled for,
            or as the board offers if those are fewer.
        require_signature: A public key that must have signed the bundle; see `load`. The board
            trusts what it is sent: the signature is checked on this side.
        timeout: Seconds that the board may take for each answer: to be looked at, to load the
            bundle, to run it. Timed runs may take three times what the first run made expect, and
            this on top. A week at most.

    Raises:
        BundleError: The bundle is damaged.
        SignatureError: The signature is missing or another's, or the key cannot be read.
        BoardUnreachableError: Nothing answers there, or it stopped answering.
        NoFreeBoardError: The tracker has no board free.
        BoardMismatchError: The board cannot run code for the bundle's target.
        BundleMismatchError: The board's TVM, or its ffi, is of another version.
        InputError: More threads than the board offers, or a timeout that is none.
    """
    if not 0 < timeout <= LONGEST_SECONDS:
        raise InputError(f"a timeout of {timeout} s is out of range", "give up to a week")
    directory = Path(path)
    manifest = verify(directory, require_signature)
    with ExitStack() as stack:
        place = stack.enter_context(reached(endpoint)) if isinstance(endpoint, str) else endpoint
        worker = stack.enter_context(KillableWorker(quiet=True))
        board = _probe(place, manifest.target, timeout, worker)
        _check_fit(manifest, board, place)
        code = _code(directory, manifest)
        executor = _Executor(worker, place, timeout, code, manifest, threads)
        stack.callback(executor.close)
        yield RemoteNetwork(directory, manifest.to_json(), executor, board)


def _check_fit(manifest: Manifest, board: BoardInfo, place: Endpoint) -> None:
    needs = manifest.versions
    for package, wanted, has in (
        ("TVM", needs.tvm, board.tvm_version),
        ("apache-tvm-ffi", needs.tvm_ffi, board.ffi_version),
    ):
        # A post-release repackages the same library.
        if manifest.format == "vm" and has and has.split(".")[:3] != wanted.split(".")[:3]:
            raise BundleMismatchError(
                f"the bundle needs {package} {wanted}; {place} serves {has}",
                "install that version on the board, or build the bundle again",
            )
    if manifest.libc != "glibc":
        raise BundleMismatchError(
            f"the bundle is for {manifest.libc}; TVM's RPC server, on {place}, runs with glibc",
            "build with --libc glibc to run it there",
        )


def _code(directory: Path, manifest: Manifest) -> bytes:
    """The library; what is checked here is what is sent."""
    try:
        content = file_content(directory, manifest.library, manifest.to_json()["files"])
    except DamagedError as error:
        raise BundleError(str(error), error.hint) from error
    return bytes(content)


def _probe(
    place: Endpoint, target: TargetSpec, timeout: float, worker: KillableWorker
) -> BoardInfo:
    try:
        return probe(place, target, timeout=timeout, worker=worker)
    except BoardMismatchError as error:
        # Here the user gave a bundle, not a target.
        hint = f"the bundle is for {target.describe()}; build one for the board"
        raise BoardMismatchError(str(error), hint) from error


class _Executor:
    """A network's executor whose work is done by `_open`, `_run` and `_time` in the worker."""

    def __init__(
        self,
        worker: KillableWorker,
        place: Endpoint,
        timeout: float,
        code: bytes,
        manifest: Manifest,
        threads: int | None,
    ) -> None:
        self._worker = worker
        self._place = place
        self._timeout = timeout
        self.threads = int(self._ask(_open, (place, code, manifest, threads)))

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self._ask(_run, (inputs,))
        return outputs

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        begun = time.monotonic()
        self.run(inputs)
        once = time.monotonic() - begun
        more = _PATIENCE * once * (warmup + 1 + repeat)  # TVM calls once before it takes the time
        seconds: list[float] = self._ask(_time, (inputs, repeat, warmup), more)
        return seconds

    def close(self) -> None:
        with suppress(TvmattendError, RuntimeError, OSError):  # the process ends in any case
            self._worker.call(_CLOSE_SECONDS, _close, ())

    def _ask(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], more: float = 0.0
    ) -> Any:
        if function is not _open and not self._worker.is_alive():
            raise BoardUnreachableError(
                f"{self._place}: there is no session any more", "load the bundle there again"
            )
        return ask_of(self._place, self._worker, self._timeout + more, function, arguments)


# The worker's only session, and the network in it.
_HERE: list["_BoardVM"] = []


def _open(place: Endpoint, code: bytes, manifest: Manifest, threads: int | None) -> int:
    make = _BoardVM if manifest.format == "vm" else _BoardLibrary
    _HERE.append(make(connect(place), place, code, manifest, threads))
    return _HERE[0].threads


def _run(inputs: list[np.ndarray]) -> list[np.ndarray]:
    return _HERE[0].run(inputs)


def _time(inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
    return _HERE[0].time(inputs, repeat, warmup)


def _close() -> None:
    close_session(_HERE[0].session)


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

    def _set(self, inputs: list[np.ndarray]) -> None:
        from tvm.runtime import tensor

        device = self.session.cpu()
        self._machine.set_input("main", *(tensor(array, device) for array in inputs))


class _BoardLibrary(_BoardVM):
    """A standalone library in the session's process: the server calls the door in it.

    `<prefix>_rpc(threads, inputs..., outputs...)` gives the status of `<prefix>_run`.
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
        status = int(self._machine(self.threads, *self._inputs, *self._outputs))
        if status != 0:
            raise BundleMismatchError(
                f"{self._place}: the library refused to run, with status {status}",
                f"{self._name.removesuffix('_rpc')}.h says what the number means",
            )
        return [output.numpy() for output in self._outputs]

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        self._set(inputs)
        for _ in range(warmup):
            self._machine(self.threads, *self._inputs, *self._outputs)
        # The board takes the time itself: no round trip is in it.
        evaluate = self._module.time_evaluator(
            self._name, self.session.cpu(), number=1, repeat=repeat
        )
        arguments = (self.threads, *self._inputs, *self._outputs)
        return [float(seconds) for seconds in evaluate(*arguments).results]

    def _set(self, inputs: list[np.ndarray]) -> None:
        from tvm.runtime import tensor

        self._inputs = [tensor(array, self.session.cpu()) for array in inputs]
