# SPDX-License-Identifier: Apache-2.0
"""The same network, executed on a board over TVM RPC.

It stands beside `network.py`, and not in it, because this side needs TVM itself, which no device
has. The board needs only its RPC server: the library is uploaded, and lives as long as the session,
which is one from the first look at the board on: a tracker would give another board to the next.

TVM's client is in a process of its own (`device.killable`), which also has the session
(`remote_session.py`): a board that is silent, or that answers nonsense, costs that process and not
this one.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.bundle.manifest import Manifest
from tvmattend.bundle.verify import verify
from tvmattend.device.board import BoardInfo, ask_of, built_probe
from tvmattend.device.endpoint import Endpoint, check_reachable
from tvmattend.device.killable import ANSWER_SECONDS, KillableWorker
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
from tvmattend.runtime import remote_session
from tvmattend.runtime.network import BundleError as DamagedError
from tvmattend.runtime.network import Network, file_content
from tvmattend.target import TargetSpec

# All timed runs are one answer, which may take so many times as long as the first run made expect.
_PATIENCE = 3.0
_CLOSE_SECONDS = 3.0
# Its steps' times, with one before for the caches, and a whole inference with one before.
_CALLS_OF_PROFILE = 4


class RemoteNetwork(Network):
    """A bundle on a board; `board` says what that is."""

    def __init__(
        self, directory: Path, manifest: dict[str, Any], executor: "_Executor", board: BoardInfo
    ) -> None:
        super().__init__(directory, manifest, executor)
        self.board = board

    def profile(
        self, *arrays: np.ndarray, runs: int
    ) -> list[tuple[list[tuple[str, float]], float]]:
        """Time the steps of a standalone library on the board, and whole inferences in turns.

        Returns:
            For each run the seconds of its steps by name, in order, and those of an inference.

        Raises:
            BundleMismatchError: The bundle is of the format `vm`.
        """
        if self.manifest["format"] == "vm":
            # Its instrument is a function in the same process, which no client can send.
            raise BundleMismatchError(
                "TVM's virtual machine does not tell its kernels' times over RPC",
                "build with --format standalone, or profile the bundle on the board itself",
            )
        found: list[tuple[list[tuple[str, float]], float]] = self._executor.profile(
            self._fit(arrays), runs
        )
        return found

    def time_kernel(self, code: bytes, arrays: list[np.ndarray], repeat: int) -> float:
        """Give the least seconds, of `repeat`, of `main` in a TVM library of one kernel.

        Args:
            code: The library, for the bundle's target.
            arrays: Its arguments.
            repeat: Timed calls.
        """
        return float(self._executor.time_kernel(code, arrays, repeat))


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
        check_reachable(place)  # before a process is even started
        asker = _Asker(worker, place, timeout)
        stack.callback(asker.close)
        board = _reach(asker, manifest.target, built_probe(manifest.target, worker))
        _check_fit(manifest, board, place)
        executor = _Executor(asker, _code(directory, manifest), manifest, threads)
        if threads is None:
            board = _with_threads_noted(board, executor.threads, manifest.threads)
        yield RemoteNetwork(directory, manifest.to_json(), executor, board)


def _with_threads_noted(board: BoardInfo, offered: int, wanted: int) -> BoardInfo:
    if offered >= wanted:
        return board
    note = (
        f"the bundle is compiled for {wanted} threads and the board's server offers {offered}: "
        "TVM_NUM_THREADS, set where it starts, raises that"
    )
    return replace(board, notes=(*board.notes, note))


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


def _reach(asker: "_Asker", target: TargetSpec, probe: bytearray) -> BoardInfo:
    board: BoardInfo
    try:
        board = asker.ask(remote_session.reach, (asker.place, probe, target))
    except BoardMismatchError as error:
        # Here the user gave a bundle, not a target.
        hint = f"the bundle is for {target.describe()}; build one for the board"
        raise BoardMismatchError(str(error), hint) from error
    return board


class _Asker:
    """Has the worker, where the session is, do things with the board."""

    def __init__(self, worker: KillableWorker, place: Endpoint, timeout: float) -> None:
        self.place = place
        self._worker = worker
        self._timeout = timeout

    def ask(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], more: float = 0.0
    ) -> Any:
        """Call a function of `remote_session`, which may take `more` seconds than an answer."""
        if function is not remote_session.reach and not self._worker.is_alive():
            raise BoardUnreachableError(
                f"{self.place}: there is no session any more", "load the bundle there again"
            )
        seconds = min(self._timeout + more, LONGEST_SECONDS)
        return ask_of(self.place, self._worker, seconds, function, arguments)

    def close(self) -> None:
        """End the session, if the worker is there; its process ends in any case."""
        if self._worker.is_alive():
            with suppress(TvmattendError, RuntimeError, OSError):
                self._worker.call(_CLOSE_SECONDS, remote_session.close, ())


class _Executor:
    """A network's executor whose work is done by `remote_session` in the worker."""

    def __init__(self, asker: _Asker, code: bytes, manifest: Manifest, threads: int | None) -> None:
        self._ask = asker.ask
        self.threads = int(
            self._ask(remote_session.open_network, (asker.place, code, manifest, threads))
        )

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self._ask(remote_session.run, (inputs,))
        return outputs

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        # TVM calls once before it takes the time.
        more = self._once(inputs) * (warmup + 1 + repeat)
        seconds: list[float] = self._ask(remote_session.time, (inputs, repeat, warmup), more)
        return seconds

    def profile(
        self, inputs: list[np.ndarray], runs: int
    ) -> list[tuple[list[tuple[str, float]], float]]:
        more = self._once(inputs) * _CALLS_OF_PROFILE * runs
        found: list[tuple[list[tuple[str, float]], float]] = self._ask(
            remote_session.profile, (inputs, runs), more
        )
        return found

    def time_kernel(self, code: bytes, arrays: list[np.ndarray], repeat: int) -> float:
        return float(self._ask(remote_session.time_kernel, (code, arrays, repeat)))

    def _once(self, inputs: list[np.ndarray]) -> float:
        """Seconds that one more inference may take."""
        begun = time.monotonic()
        self.run(inputs)
        return _PATIENCE * (time.monotonic() - begun)
