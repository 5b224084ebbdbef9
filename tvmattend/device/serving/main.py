# SPDX-License-Identifier: Apache-2.0
"""Serve on a listening socket that the starter handed over."""

import argparse
import ctypes
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import socket
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .conditions import file_reader, read_conditions, vcgencmd
from .sessions import Server, log
from .status import Status, machine_facts
from .tracker import Registration
from .wire import BOARD_FUNCTION, ProtocolError

_STOPPING = (signal.SIGTERM, signal.SIGINT)


def load_runtime(directory: Path | None) -> None:
    """Load TVM's runtime into this process, and nothing of its compiler.

    Args:
        directory: Where `libtvm_runtime.so` is; None means inside the installed `apache-tvm`.

    Raises:
        FileNotFoundError: It is not there.
    """
    # tvm_ffi imports torch if it finds it: two seconds and 120 MB that a board has better uses for.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import tvm_ffi  # noqa: F401  (brings libtvm_ffi.so, which the runtime needs)

    if directory is None:
        package = importlib.util.find_spec("tvm")
        places = list(package.submodule_search_locations or []) if package else []
        directory = next((Path(place) / "lib" for place in places), Path("lib"))
    library = directory / "libtvm_runtime.so"
    if not library.is_file():
        raise FileNotFoundError(f"there is no {library}")
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    extra = directory / "libtvm_runtime_extra.so"
    if extra.is_file():  # holds `random_fill_for_measure`, without which nothing can be tuned
        ctypes.CDLL(str(extra))


def register_board(facts: dict[str, Any]) -> dict[str, Any]:
    """Let clients ask what this board is, as JSON; give that, too."""
    import tvm_ffi

    try:
        version = importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    ffi = tvm_ffi.__version__
    told = {"machine": platform.machine(), "tvm": version, "tvm_ffi": ffi, **facts}
    text = json.dumps(told)
    tvm_ffi.register_global_func(BOARD_FUNCTION, lambda: text, override=True)
    return told


def account(facts: dict[str, Any], sysfs: str) -> Status:
    """Prepare what this server says of itself.

    Args:
        facts: What it tells its clients.
        sysfs: Where `/sys` is looked for; under qemu-user the files are those of the machine
            below, so nothing is read there unless a place is given.
    """
    silent = bool(facts.get("emulated")) and not sysfs
    read, firmware = file_reader(sysfs), vcgencmd(sysfs)
    cpu = {} if facts.get("emulated") else machine_facts(file_reader())
    return Status({**cpu, **facts}, lambda: {} if silent else read_conditions(read, firmware))


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    for number in _STOPPING:  # a second one would end the cleaning up with a traceback
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def main(arguments: list[str] | None = None) -> int:
    """Serve on a listening socket that the starter handed over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True, help="file descriptor, listening")
    parser.add_argument("--lifeline", type=int, help="file descriptor; stop at its end of file")
    parser.add_argument("--runtime", type=Path, help="directory of libtvm_runtime.so")
    parser.add_argument("--board", default="{}", help="facts about this board, JSON")
    parser.add_argument("--tracker", type=_address, help="HOST:PORT to register with")
    parser.add_argument("--key", default="", help="name at the tracker")
    parser.add_argument("--advertise", type=_address, help="HOST:PORT for the tracker's clients")
    parser.add_argument("--sysfs", default="", help="directory that holds the board's /sys")
    parser.add_argument("--verbose", action="store_true", help="log every session")
    options = parser.parse_args(arguments)

    for number in _STOPPING:
        signal.signal(number, _stop)
    # Forking is how a session starts; no thread of ours is running then.
    warnings.simplefilter("ignore", DeprecationWarning)
    listener = socket.socket(fileno=options.socket)
    for descriptor in [options.socket, options.lifeline]:
        if descriptor is not None:
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    try:
        load_runtime(options.runtime)
    except (ImportError, OSError) as error:
        log(f"cannot load TVM's runtime: {error}")
        return 1
    told = register_board(json.loads(options.board))
    registration = None
    if options.tracker is not None:
        address = options.advertise or (None, listener.getsockname()[1])
        registration = Registration(options.tracker, options.key, address)
        try:
            registration.open()
        except (OSError, ProtocolError) as error:
            log(f"tracker {options.tracker[0]}:{options.tracker[1]}: {error}")
            return 1
    print("ready", flush=True)  # noqa: T201
    # The starter reads that word and no more: a session that prints would wait for it for ever.
    os.dup2(2, 1)
    status = account(told, options.sysfs)
    Server(listener, options.lifeline, registration, status, options.verbose).run()
    return 0
