# SPDX-License-Identifier: Apache-2.0
"""Boards for every test: this machine as one, and an emulated Cortex-A72; the smallest bundles.

The emulated board is never skipped: without `qemu-aarch64` its tests are errors that say which
package is missing.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tvm.rpc.tracker import Tracker

from tvmattend.bundle.signing import create_key, sign_bundle
from tvmattend.codegen import build
from tvmattend.device.emulated import EmulatedBoard, EmulatedPython, prepare
from tvmattend.device.endpoint import Endpoint, tracker_endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.storage import cache_root
from tvmattend.target import host_target

# A shell that starts the suite in the background has it ignore Ctrl-C, and what ignores a signal
# passes that on: the programs that the tests interrupt would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does `nohup` with a closed terminal. The suite goes on without it, and programs do not inherit
# what a handler does.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# Tests with a cache of their own need not have Zig build its C libraries again.
os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache_root() / "zig"))


# Files of a minute and more begin first, so that no worker of `pytest -n 2` is left with one at the
# end. `--no-loadscope-reorder` keeps this order.
_LONG = (
    "test_kills.py",
    "test_device_apps.py",
    "test_faults.py",
    "test_fleet.py",
    "test_silence.py",
    "test_end_to_end.py",
    "test_tune_emulated.py",
    "test_bench_estimated.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(_LONG)))


@pytest.fixture(scope="session")
def emulated() -> EmulatedBoard:
    """The prepared board itself; the first call ever downloads it (20 s, 150 MB)."""
    return prepare(lambda step: print(step, file=sys.stderr))  # noqa: T201


@pytest.fixture(scope="session")
def emulated_board(
    emulated: EmulatedBoard, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """`127.0.0.1:PORT` of an emulated Cortex-A72 that serves TVM RPC."""
    log = tmp_path_factory.mktemp("emulated-board") / "server.log"
    with emulated.serve(log=log) as address:
        yield address


@pytest.fixture(scope="session")
def device_python(emulated: EmulatedBoard) -> EmulatedPython:
    """An aarch64 Python with only numpy and apache-tvm-ffi, as on a user's device."""
    return emulated.minimal_python()


@pytest.fixture(scope="session")
def host_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`127.0.0.1:PORT` of this machine as a board."""
    log = tmp_path_factory.mktemp("host-board") / "server.log"
    with serve_here(ServerOptions(), log) as server:
        yield server.address


@pytest.fixture
def tracker() -> Iterator[Endpoint]:
    """A tracker of TVM's, which boards may join under the key `pi4`."""
    running = Tracker("127.0.0.1", port=19190, port_end=19390, silent=True)
    yield tracker_endpoint(f"127.0.0.1:{running.port}", "pi4")
    running.terminate()


@pytest.fixture(scope="session")
def signed_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`attendnext_tiny` for this machine as `vm/` and `standalone/`, signed by `key`; read only."""
    place = tmp_path_factory.mktemp("tiny")
    threads = min(2, len(os.sched_getaffinity(0)))
    key = create_key(place / "key")
    for kind in ("vm", "standalone"):
        build("attendnext_tiny", host_target(threads), output=place / kind, format=kind,
              use_records=False)  # fmt: skip
        sign_bundle(place / kind, key.private)
    return place
