# SPDX-License-Identifier: Apache-2.0
"""A Cortex-A72 for everyone: qemu-user, Debian's arm64 Python, and TVM's aarch64 wheels.

Verified with Debian 12, Python 3.11 and qemu 7.2, and with Debian 13, Python 3.13 and qemu 10.0.
Kernels run at some 300 MFLOP/s, so times taken here say nothing about silicon; results do.
"""

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmattend.cache import Progress, prepared
from tvmattend.device.debian import unpack_packages
from tvmattend.device.process import ServerOptions, ServerProcess
from tvmattend.device.wheels import install_wheels
from tvmattend.errors import ToolMissingError

CORE = "cortex-a72"

# What a bundle may count on; then what TVM's own Python package wants besides; then the optional.
_DEVICE = ("numpy>=2,<3", "apache-tvm-ffi==0.1.14.post1", "typing-extensions>=4.13")
_BOARD = ("apache-tvm==0.27.0.post1", "ml-dtypes", "psutil", "cloudpickle>=3", "tornado>=6.4")
_EXTRA = ("pillow>=11",)

_DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6")

# 40 packages would be 77 MB; without these they are 45, compiled Python files included.
_LEAVE_OUT_OF_DEBIAN = (
    r"^(?!usr/lib/|usr/bin/python3)|/gconv/|/krb5|/audit/|^usr/lib/(dpkg|binfmt\.d|mime|sasl2)"
    r"|^usr/lib/python3[.0-9]*/(test|idlelib|lib2to3|ensurepip|pydoc_data|tkinter|turtledemo)/"
)
# The compiler library alone is 240 MB, and no board needs it. The headers are for building TVM.
_LEAVE_OUT_OF_WHEELS = (
    r"^tvm/(3rdparty|cmake|include|src|web)/|/libtvm_(compiler|runtime_cuda)\.so$"
    r"|^tvm_ffi/(include|share)/|^numpy/.*/(tests|include)/|^numpy/(f2py|typing|tests)/|\.(pyi|a)$"
)

# Raised whenever the content of the directory changes for a reason that the pins do not show.
_LAYOUT = 1

# Of the cache: 150 MB unpacked and, while it is made, 150 MB of downloads.
_BYTES = 320 << 20

# Names that mean this machine's Python, libraries or emulator, and would mislead the board's.
_HOST_ONLY = ("PYTHON", "LD_", "QEMU_", "VIRTUAL_ENV", "CONDA")


@dataclass(frozen=True)
class EmulatedPython:
    """An aarch64 Python that runs here.

    Attributes:
        qemu: Path of the emulator.
        root: The board's file system, as far as it has one; other paths are this machine's.
        executable: The Python, inside `root`.
        packages: The directories that it imports from, and no others.
    """

    qemu: str
    root: Path
    executable: Path
    packages: tuple[Path, ...]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Give the command line for a script, `-m` or `-c`; run it with `environment()`."""
        emulator = [self.qemu, "-cpu", CORE, "-L", str(self.root)]
        return [*emulator, *self.guest_command(arguments)]

    def guest_command(self, arguments: Sequence[str]) -> list[str]:
        """Give `command` without the emulator, for whoever runs it under one of their own."""
        # -s -S: neither the user's packages nor this machine's.
        return [str(self.executable), "-s", "-S", *arguments]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Give the whole environment: this machine's without its Python, then `extra`.

        `TVM_NUM_THREADS` is the board's four cores or this machine's if they are fewer, unless it
        is set: four emulated cores on two real ones are slower than two.
        """
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_HOST_ONLY)}
        threads = min(4, os.cpu_count() or 1)
        return {
            "TVM_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": "1",
            **kept,
            "PYTHONUTF8": "1",
            "PYTHONPATH": os.pathsep.join(map(str, self.packages)),
            **(extra or {}),
        }

    def run(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, capturing output; the exit code is the caller's to judge."""
        return subprocess.run(
            self.command(arguments),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=self.environment(env),
            cwd=cwd,
            timeout=timeout,
        )


@dataclass(frozen=True)
class EmulatedBoard:
    """A prepared board: directories in the cache, and the emulator.

    Attributes:
        place: The cache directory that holds all of it.
        qemu: Path of the emulator.
    """

    place: Path
    qemu: str

    @property
    def root(self) -> Path:
        """Where the board's `/usr` is."""
        return self.place / "root"

    @property
    def runtime(self) -> Path:
        """The directory of `libtvm_runtime.so` and `libtvm_runtime_extra.so` for aarch64."""
        return self.place / "board" / "tvm" / "lib"

    @functools.cached_property
    def python_version(self) -> str:
        """`3.11` on Debian 12."""
        return _python_version(self.root)

    def python(self) -> EmulatedPython:
        """A Python as on a board with `pip install apache-tvm numpy` (runtime only)."""
        return self._python("board", "device")

    def minimal_python(self, pillow: bool = False) -> EmulatedPython:
        """A Python with only numpy and apache-tvm-ffi (and what that imports), for bundles."""
        return self._python(*(["device", "extra"] if pillow else ["device"]))

    def start(self, options: ServerOptions | None = None, log: Path | None = None) -> ServerProcess:
        """Start serving TVM RPC.

        Raises:
            PortError: The address cannot be bound.
            BoardUnreachableError: The server did not start.
        """
        given = options or ServerOptions()
        facts = {"emulated": True, "core": CORE, **given.board}
        python = self.python()
        return ServerProcess(
            python.command([]),
            python.environment(),
            ServerOptions(**{**vars(given), "board": facts}),
            runtime=self.runtime,
            log=log,
        )

    @contextlib.contextmanager
    def serve(self, port: int = 0, log: Path | None = None) -> Iterator[str]:
        """Serve on loopback while the context lasts; gives `127.0.0.1:PORT` for `--rpc`."""
        with self.start(ServerOptions(port=port), log) as server:
            yield server.address

    def _python(self, *packages: str) -> EmulatedPython:
        executable = self.root / "usr" / "bin" / f"python{self.python_version}"
        places = tuple(self.place / name for name in packages)
        return EmulatedPython(self.qemu, self.root, executable, places)


def prepare(progress: Progress = lambda _: None) -> EmulatedBoard:
    """Give the emulated board, downloading it (150 MB, once) if the cache does not hold it.

    Raises:
        ToolMissingError: qemu, apt or pip is missing, or a download fails.
        StorageError: The cache directory cannot be written.
    """
    qemu = find_qemu()
    stamp = {
        "layout": _LAYOUT,
        "debian": _DEBIAN,
        "wheels": [*_DEVICE, *_BOARD, *_EXTRA],
        "left out": [_LEAVE_OUT_OF_DEBIAN, _LEAVE_OUT_OF_WHEELS],
    }
    build = functools.partial(_build, qemu, progress)
    place = prepared(f"emulated-{CORE}", stamp, build, progress, _BYTES)
    return EmulatedBoard(place, qemu)


def find_qemu() -> str:
    """Give the path of the emulator.

    Raises:
        ToolMissingError: It is not installed.
    """
    for name in ("qemu-aarch64", "qemu-aarch64-static"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise ToolMissingError(
        "there is no `qemu-aarch64`, which runs the emulated board",
        "install the package `qemu-user` (Debian: `apt-get install qemu-user`)",
    )


def _build(qemu: str, progress: Progress, place: Path) -> None:
    root = place / "root"
    unpack_packages(_DEBIAN, "arm64", root, _LEAVE_OUT_OF_DEBIAN, progress)
    version = _python_version(root)
    for directory, requirements in (("device", _DEVICE), ("board", _BOARD), ("extra", _EXTRA)):
        progress(f"wheels for aarch64 and Python {version}: {', '.join(requirements)}")
        install_wheels(requirements, place / directory, "aarch64", version, _LEAVE_OUT_OF_WHEELS)
    progress("first run, which compiles Python's files")
    python = EmulatedBoard(place, qemu).minimal_python(pillow=True)
    _first_run(python, "import numpy, numpy.random, tvm_ffi, PIL.Image")
    _first_run(EmulatedBoard(place, qemu).python(), "import tvm.rpc, argparse, multiprocessing")


def _first_run(python: EmulatedPython, program: str) -> None:
    try:
        done = python.run(["-c", program])
    except subprocess.TimeoutExpired as error:
        raise ToolMissingError(
            f"the emulated board was not ready after {error.timeout:g} s",
            "this machine may be too busy: try again",
        ) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise ToolMissingError(
            f"the emulated board does not work (exit code {done.returncode}): "
            f"{lines[-1] if lines else 'no message'}",
            "qemu 7.2 and 10.0 are known to work; which version is `qemu-aarch64 --version`?",
        )


def _python_version(root: Path) -> str:
    found = sorted((root / "usr" / "bin").glob("python3.*[0-9]"))
    if len(found) != 1:
        raise ToolMissingError(
            f"the Debian packages hold {len(found)} Pythons, where one was expected",
            "apt's sources seem to mix releases",
        )
    return found[0].name.removeprefix("python")
