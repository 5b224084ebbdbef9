# SPDX-License-Identifier: Apache-2.0
"""What runs the kernels in this process: TVM's virtual machine, or a standalone library."""

from __future__ import annotations

import functools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.runtime.contents import AGAIN, Code, sibling
from tvmattend.runtime.faults import BundleError, BundleMismatchError, DeviceError, load_hint
from tvmattend.runtime.tensors import aligned, tensor_specs

_pool_lock = threading.Lock()


def kernel_thread(threads: int) -> ThreadPoolExecutor:
    """The one Python thread of a process from which networks with that many threads run kernels.

    TVM's pool of workers belongs to the thread that calls it, gets its size on that thread's first
    call, binds its caller to cores and is never freed. A thread of our own gives the pool the
    size asked for, leaves the application's threads unbound, and serves all bundles.
    """
    return _kernel_thread(threads, os.getpid())


@functools.cache
def _kernel_thread(threads: int, _process: int) -> ThreadPoolExecutor:
    # A fork copies the cache, and no thread.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"tvmattend-{threads}")


def size_pool(tvm_ffi: Any, threads: int, allowed: set[int]) -> None:
    """Give the calling thread a pool of `threads` workers on the fastest of the allowed CPUs."""

    def speed(cpu: int) -> int:
        entry = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq")
        return int(entry.read_text(encoding="ascii")) if entry.is_file() else 0

    cpus = sorted(allowed, key=lambda cpu: (-speed(cpu), cpu))
    fast = [str(cpu) for cpu in cpus if speed(cpu) >= speed(cpus[threads - 1])]
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    # Mode -3: each worker may run on every CPU of the list. The first call of a thread makes its
    # pool, with as many workers as the list has CPUs; the second widens where they may run.
    with _pool_lock:  # TVM passes the length through a global variable
        configure(-3, threads, fast[:threads])
        configure(-3, threads, fast)
    used = tvm_ffi.get_global_func("runtime.NumThreads")()
    if used != threads:
        raise BundleMismatchError(
            f"TVM runs {used} threads, not the {threads} asked for", "give fewer threads"
        )


class LocalVM:
    """The Relax virtual machine of one bundle, in this process."""

    def __init__(self, tvm_ffi: Any, code: Code, manifest: dict[str, Any], threads: int) -> None:
        self.threads = threads
        self._process = os.getpid()
        self._name: str = manifest["library"]
        self._buffers = [aligned(spec) for spec in tensor_specs(manifest["inputs"])]
        try:
            self._call(self._start, tvm_ffi, code.path(self._name), os.sched_getaffinity(0))
        except (RuntimeError, AttributeError) as error:  # what TVM's loader raises
            made = manifest["versions"]
            raise BundleMismatchError(
                f"{self._name} does not load: {last_line(error)}",
                load_hint(
                    error,
                    f"it was made with TVM {made['tvm']} and apache-tvm-ffi {made['tvm_ffi']}; "
                    f"here is apache-tvm-ffi {tvm_ffi.__version__}",
                ),
            ) from error

    def run(self, inputs: list[np.ndarray]) -> Any:
        """Give the outputs of one inference."""
        return self._call(self._run, inputs)

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        """Give the seconds of `repeat` runs after `warmup` others."""
        for _ in range(warmup + 1):
            self.run(inputs)
        # One by one, so that Ctrl-C need not wait for all of them.
        return [self._call(self._time) for _ in range(repeat)]

    def _call(self, function: Any, *args: Any) -> Any:
        if os.getpid() != self._process:  # the workers do not exist in the child: it would hang
            raise DeviceError("the bundle was loaded before a fork", "load it in the child process")
        return kernel_thread(self.threads).submit(function, *args).result()

    def _start(self, tvm_ffi: Any, library: str, allowed: set[int]) -> None:
        size_pool(tvm_ffi, self.threads, allowed)
        self._vm = _open_module(tvm_ffi, library)["vm_load_executable"]()
        self._vm["vm_initialization"](1, 0, 2)  # CPU, device 0, pooled allocator
        self._main = self._vm["main"]
        self._tensors = [tvm_ffi.from_dlpack(buffer) for buffer in self._buffers]

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        for buffer, array in zip(self._buffers, inputs):  # noqa: B905  (Python 3.9)
            np.copyto(buffer, array)
        try:
            result = self._main(*self._tensors)
        except (RuntimeError, ValueError, TypeError) as error:  # what TVM raises
            raise BundleError(f"{self._name} refused: {last_line(error)}", AGAIN) from error
        # Copies: an output may be an input's buffer, and the allocator takes its memory back.
        results = [result] if hasattr(result, "__dlpack__") else result
        return [np.from_dlpack(tensor).copy() for tensor in results]

    def _time(self) -> float:
        start = time.perf_counter()
        self._main(*self._tensors)
        return time.perf_counter() - start


def _open_module(tvm_ffi: Any, library: str) -> Any:
    if library.endswith(".so"):
        return tvm_ffi.load_module(library)
    # A private copy is called by a number; `load_module` chooses the loader by the name's end.
    module = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")(library, "so")
    tvm_ffi.get_global_func("ffi.ModuleGlobalsAdd")(module)  # as there: its code stays
    return module


def last_line(error: Exception) -> str:
    """Give the line that says it of what TVM raises, whose first lines are a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class LocalLibrary:
    """One instance of a standalone library; the file that runs it lies beside this one."""

    def __init__(self, code: Code, manifest: dict[str, Any], threads: int) -> None:
        self._module = sibling("standalone")
        name = manifest["library"]
        try:
            self._library = self._module.Library(code.path(name), threads, name)
        except self._module.LibraryError as error:
            raise BundleMismatchError(str(error), error.hint) from error
        self.threads: int = self._library.threads
        for kind in ("inputs", "outputs"):
            found = [tuple(tensor) for tensor in getattr(self._library, kind)]
            if found != [tuple(spec) for spec in tensor_specs(manifest[kind])]:
                raise BundleError(f"{manifest['library']} has other {kind} than said", AGAIN)

    def run(self, inputs: list[np.ndarray]) -> Any:
        """Give the outputs of one inference."""
        return self._call(self._library.run, inputs)

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> Any:
        """Give the seconds of `repeat` runs after `warmup` others."""
        return self._call(self._library.time, inputs, repeat, warmup)

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except self._module.LibraryError as error:
            raise DeviceError(str(error), error.hint) from error
