# SPDX-License-Identifier: Apache-2.0
"""Run a standalone library (`lib<model>.so`) with numpy and ctypes, and nothing else.

    from tvmattend_standalone import Library

    net = Library("libattendnext.so", threads=4)
    (y,) = net.run([x])

`tvmattend_runtime.load` uses it for a bundle of that format, where it lies beside the library; it
also works alone, with the one `.so` file. Every error carries `exit_code` and `hint`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_ABI = 1  # <MODEL>_ABI of the header
_ALIGNMENT = 64
_MAX_THREADS = 64  # <MODEL>_MAX_THREADS
_MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine of an ELF header


class LibraryError(Exception):
    """A library that is not one, or a call of it that failed; `hint` says what to do."""

    exit_code = 14

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Tensor(NamedTuple):
    """One input or output, as the library describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _Spec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("layout", ctypes.c_char_p),
        ("rank", ctypes.c_size_t),
        ("shape", ctypes.c_int64 * 8),
        ("bytes", ctypes.c_size_t),
    )

    def tensor(self) -> Tensor:
        texts = [text.decode() for text in (self.name, self.dtype, self.layout)]
        return Tensor(texts[0], tuple(self.shape[: self.rank]), texts[1], texts[2])


# Fields of <model>_info, in order.
_INFO: dict[str, Any] = {
    **dict.fromkeys(("abi", "threads", "num_inputs", "num_outputs", "num_steps"), ctypes.c_uint32),
    **dict.fromkeys(("weight_bytes", "arena_bytes", "thread_bytes"), ctypes.c_size_t),
    **dict.fromkeys(("model", "version", "target", "weights_sha256"), ctypes.c_char_p),
}


class _Info(ctypes.Structure):
    _fields_ = tuple(_INFO.items())


class Library:
    """One instance of a compiled network.

    Any Python thread may run it; calls wait for one another. Instances are independent.

    Attributes:
        inputs: What `run` takes.
        outputs: What it gives.
        threads: Threads that run the kernels.
        info: What the library says about itself: model, version, target, sizes in bytes.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 0, name: str = "") -> None:
        """Load a library and create an instance.

        Args:
            path: Of the `.so` file, called `lib<prefix>.so`.
            threads: How many compute; 0 for as many as the network was compiled for, or as this
                process has CPUs, or 64, if those are fewer.
            name: What the file is called, where `path` is that of a nameless copy.

        Raises:
            LibraryError: It does not load, is not such a library, or no instance can be created.
        """
        match = re.fullmatch(r"lib(\w+)\.so", name or Path(path).name)
        if match is None:
            raise LibraryError(f"{path} is not called lib<model>.so", "its name is that of its API")
        whole = isinstance(threads, (int, np.integer)) and not isinstance(threads, bool)
        if not whole or not 0 <= threads <= _MAX_THREADS:
            raise LibraryError(
                f"threads={threads!r} is no number from 0 to {_MAX_THREADS}",
                "0 is as many as it was compiled for",
            )
        self._prefix = match[1]
        self._library = _open(os.fspath(path))
        try:
            info = self._function("get_info", ctypes.POINTER(_Info))().contents
        except AttributeError as error:
            raise LibraryError(
                f"{path} holds no network `{self._prefix}`: {error}",
                "give the library of a bundle, under the name that it has there",
            ) from error
        if info.abi != _ABI:
            raise LibraryError(
                f"{path} has ABI {info.abi}, this file knows {_ABI}",
                "use the tvmattend_standalone.py of the same bundle",
            )
        self.info: dict[str, Any] = {name: _plain(getattr(info, name)) for name in _INFO}
        self.inputs = self._tensors("input", info.num_inputs)
        self.outputs = self._tensors("output", info.num_outputs)
        self._error = self._function("last_error", ctypes.c_char_p)
        counted = [ctypes.POINTER(_Buffer), ctypes.c_size_t]
        buffers = [ctypes.c_void_p, *counted, *counted]
        self._run_c = self._function("run", ctypes.c_int, *buffers)
        profile = [*buffers, ctypes.POINTER(ctypes.c_double), ctypes.c_size_t]
        self._profile_c = self._function("profile", ctypes.c_int, *profile)
        self._destroy = self._function("destroy", None, ctypes.c_void_p)
        self._in = [_aligned(spec) for spec in self.inputs]
        self._out = [_aligned(spec) for spec in self.outputs]
        self._given = _buffers(self._in)
        self._arguments = (self._given, len(self._in), _buffers(self._out), len(self._out))
        # A call must have finished before the next one may start on the same instance.
        self._turn = threading.Lock()
        self._process = os.getpid()
        place = [ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)]
        self._instance = ctypes.c_void_p()
        self._check(
            self._function("create", ctypes.c_int, *place)(
                int(threads), ctypes.byref(self._instance)
            )
        )
        self.threads: int = self._function("threads", ctypes.c_uint, ctypes.c_void_p)(
            self._instance
        )

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the network on one array for each of `inputs`; gives new arrays.

        Raises:
            LibraryError: An array is of another shape or dtype, or the library refused the call.
        """
        with self._my_turn():
            self._feed(inputs)
            self._check(self._run_c(self._instance, *self._arguments))
            return [output.copy() for output in self._out]

    def profile(self, inputs: Sequence[np.ndarray]) -> list[tuple[str, float]]:
        """Run once and give the seconds of each step, waits for its other threads included."""
        count = int(self.info["num_steps"])
        seconds = (ctypes.c_double * count)()
        with self._my_turn():
            self._feed(inputs)
            self._check(self._profile_c(self._instance, *self._arguments, seconds, count))
        name = self._function("step_name", ctypes.c_char_p, ctypes.c_size_t)
        return [(name(step).decode(), seconds[step]) for step in range(count)]

    def time(self, inputs: Sequence[np.ndarray], repeat: int, warmup: int) -> list[float]:
        """Give the seconds of `repeat` runs after `warmup` others; copies are not timed."""
        with self._my_turn():
            self._feed(inputs)
            run, arguments = self._run_c, (self._instance, *self._arguments)
            self._check(run(*arguments))
            for _ in range(warmup):
                run(*arguments)
            marks = [time.perf_counter()]
            for _ in range(repeat):
                run(*arguments)
                marks.append(time.perf_counter())
        seconds: list[float] = np.diff(marks).tolist()
        return seconds

    def close(self) -> None:
        """End the instance's threads and free its memory; it cannot run any more."""
        if os.getpid() != self._process and self.threads > 1:
            return  # its threads are the parent's
        with self._my_turn():
            instance, self._instance = self._instance, ctypes.c_void_p()
            self._destroy(instance)

    def __del__(self) -> None:
        if getattr(self, "_instance", None):
            self.close()

    def _my_turn(self) -> threading.Lock:
        """The lock; a new one in a fork's child, where a thread that is not there may hold it."""
        if os.getpid() != self._process:
            if self.threads > 1:
                raise LibraryError(
                    f"the instance of lib{self._prefix}.so was created before a fork",
                    "create one in the child process",
                )
            self._turn, self._process = threading.Lock(), os.getpid()
        return self._turn

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, f"{self._prefix}_{name}")
        function.restype, function.argtypes = result, list(arguments)
        return function

    def _tensors(self, kind: str, count: int) -> list[Tensor]:
        describe = self._function(kind, ctypes.POINTER(_Spec), ctypes.c_size_t)
        return [describe(index).contents.tensor() for index in range(count)]

    def _check(self, status: int) -> None:
        if status != 0:
            text = self._error().decode(errors="replace")
            raise LibraryError(
                f"lib{self._prefix}.so: {text} (status {status})", f"see {self._prefix}.h"
            )

    def _feed(self, inputs: Sequence[np.ndarray]) -> None:
        """Have the library read the arrays in place, or copies of those that it cannot."""
        if len(inputs) != len(self.inputs):
            raise LibraryError(
                f"{len(inputs)} inputs given, the network has {len(self.inputs)}",
                "pass one array for each of `inputs`",
            )
        for place, array in enumerate(inputs):
            spec, own = self.inputs[place], self._in[place]
            if not isinstance(array, np.ndarray):
                raise LibraryError(
                    f"input `{spec.name}` is a {type(array).__name__}, not an array",
                    "pass a numpy array",
                )
            if array.shape != spec.shape or array.dtype != own.dtype:
                raise LibraryError(
                    f"input `{spec.name}` is {spec.dtype}{list(spec.shape)}; "
                    f"got {array.dtype}{list(array.shape)}",
                    "pass an array of that shape and dtype",
                )
            if _address(array) % _ALIGNMENT or not array.flags.c_contiguous:
                np.copyto(own, array)
                array = own  # noqa: PLW2901
            self._given[place].data = _address(array)


def _open(path: str) -> ctypes.CDLL:
    """Load a library; say what is wrong where the system would only say that there is none."""
    # A name without a slash is to dlopen one of the system's.
    path = path if "/" in path else f"./{path}"
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(64)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise LibraryError(
            f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from error
    here = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    here = here if sys.maxsize > 2**32 else f"{here} with a 32-bit Python"
    machine = _MACHINES.get(int.from_bytes(head[18:20], "little"), "another machine")
    # Its last part is the table of sections, and the system's loader dies of a file that is cut.
    whole = len(head) == 64 and size >= int.from_bytes(head[40:48], "little") + (
        int.from_bytes(head[58:60], "little") * int.from_bytes(head[60:62], "little")
    )
    if head[:4] != b"\x7fELF" or not whole:
        raise LibraryError(f"{path} is no library, or cut off", "copy or build it again")
    if machine != here:
        raise LibraryError(f"{path} is for {machine}; this is {here}", "build it for this machine")
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        content = Path(path).read_bytes()
        wanted = "glibc" if b"\0libc.so.6\0" in content else "musl"
        if wanted != (platform.libc_ver()[0] or "musl"):
            raise LibraryError(
                f"{path} is for {wanted}, which is not the C library of this Python",
                "build it with the other --libc; a program links the .a with either",
            ) from error
        hint = "copy or build it again"
        if "failed to map segment" in str(error):
            hint = "its file system may be mounted noexec: copy the bundle to another one"
        raise LibraryError(f"{path} does not load: {error}", hint) from error


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _address(array: np.ndarray) -> int:
    # A tenth of the time of `array.ctypes.data`.
    address: int = array.__array_interface__["data"][0]
    return address


def _buffers(arrays: list[np.ndarray]) -> Any:
    return (_Buffer * len(arrays))(*(_Buffer(_address(array), array.nbytes) for array in arrays))


def _aligned(spec: Tensor) -> np.ndarray:
    """Make an array that starts at a multiple of 64 bytes; numpy's own are multiples of 16."""
    size = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -_address(room) % _ALIGNMENT
    return room[start : start + size].view(spec.dtype).reshape(spec.shape)
