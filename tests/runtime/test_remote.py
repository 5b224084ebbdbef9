# SPDX-License-Identifier: Apache-2.0
"""A bundle on a board over RPC: this machine's server, and the emulated Cortex-A72."""

import math
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from sample_bundles import INPUT, cortex_a72_bundle, reference, rewrite_manifest
from tvm.rpc.tracker import Tracker

from tvmattend.bundle import write_bundle
from tvmattend.device.asking import boards_at
from tvmattend.device.emulated import EmulatedPython
from tvmattend.device.endpoint import tracker_endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.device.serving.wire import LONGEST_SECONDS
from tvmattend.errors import (
    BoardMismatchError,
    BoardUnreachableError,
    BundleError,
    BundleMismatchError,
    InputError,
)
from tvmattend.runtime import network, remote, remote_session
from tvmattend.runtime.remote import load_remote


@pytest.fixture(scope="session")
def a72_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cortex_a72_bundle(tmp_path_factory.mktemp("a72"))


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal(INPUT.shape).astype("float32")


def test_it_is_the_same_network(sound_bundle: Path, host_board: str, x: np.ndarray) -> None:
    with load_remote(sound_bundle, host_board) as net:
        assert network.relative_error(np.asarray(net(x)), reference(x)) < 1e-6
        assert max(net.self_test()) < 1e-6
        assert net.classify(np.zeros((20, 20, 3), np.uint8), top=1)[0].label
        assert not net.board.emulated
        with pytest.raises(network.InputError, match="image"):
            net(x[0])
        seconds = net.time(x, repeat=5, warmup=0)
    assert len(seconds) == 5
    # The board's own time: a round trip alone is longer than this network takes.
    assert 0 < min(seconds) < 1e-3


def test_several_inputs_and_outputs(tmp_path: Path, host_board: str) -> None:
    from sample_bundles import two_by_two

    contents = two_by_two(tmp_path)
    with load_remote(write_bundle(tmp_path / "pair", contents), host_board) as net:
        assert net.self_test() == [0.0, 0.0]
        assert len(net(*contents.golden[0][0])) == 2


def test_threads_are_set_or_refused(sound_bundle: Path, host_board: str) -> None:
    with load_remote(sound_bundle, host_board, threads=1) as net:
        assert net.threads == 1
    with (
        pytest.raises(InputError, match=f"{host_board} offers"),
        load_remote(sound_bundle, host_board, threads=4096),
    ):
        pytest.fail("there is no such board")


def test_fewer_threads_than_a_bundle_is_compiled_for_are_said(
    bundle: Path, host_board: str
) -> None:
    rewrite_manifest(bundle, threads=64)
    with load_remote(bundle, host_board) as net:
        assert net.threads < 64
        assert f"offers {net.threads}: TVM_NUM_THREADS" in net.board.notes[-1]


def test_the_board_is_free_again_after_an_error(sound_bundle: Path, host_board: str) -> None:
    def fail() -> None:
        with load_remote(sound_bundle, host_board) as net:
            net.self_test()
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()


def test_the_board_that_is_looked_at_is_the_one_that_runs(
    sound_bundle: Path, tmp_path: Path
) -> None:
    """Of two boards at a tracker, each session gets another."""
    tracker = Tracker("127.0.0.1", port=29_190, port_end=29_400, silent=True)
    place = tracker_endpoint(f"127.0.0.1:{tracker.port}", "pi")
    with ExitStack() as stack:
        stack.callback(tracker.terminate)
        logs = {}
        for core in ("core-a", "core-b"):
            logs[core] = tmp_path / f"{core}.log"
            options = ServerOptions(tracker=place, board={"core": core}, verbose=True)
            stack.callback(serve_here(options, log=logs[core]).stop)
        deadline = time.monotonic() + 30
        while len(boards_at(place)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with load_remote(sound_bundle, place, threads=1) as net:
            net.self_test()
            said = net.board.core
            assert net.board.endpoint.endswith(f" ({place})")
            assert net.board.endpoint.startswith("127.0.0.1:")
    ran = [core for core, log in logs.items() if "model-" in log.read_text()]
    assert ran == [said]


def test_a_time_beyond_all_waits_is_no_fault_of_ours(sound_bundle: Path, host_board: str) -> None:
    with load_remote(sound_bundle, host_board, threads=1) as net:
        asked = []
        real = remote.ask_of

        def ask(place: object, worker: object, seconds: float, *rest: object) -> object:
            asked.append(seconds)
            return real(place, worker, seconds, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote, "ask_of", ask)
            patch.setattr(remote, "_PATIENCE", 1e12)
            net.time(*net.golden()[0][0], repeat=1)
        assert max(asked) == LONGEST_SECONDS


def test_a_library_without_this_door_is_told_as_such() -> None:
    old = object.__new__(remote_session._BoardLibrary)
    old.__dict__.update(threads=1, _place="p:1", _inputs=[], _outputs=[], _machine=lambda *_: 2)
    with pytest.raises(BundleMismatchError, match="too old to tell") as caught:
        old._call("a report")
    assert caught.value.hint == "build the bundle again"


@pytest.mark.parametrize(("status", "hint"), [(7, "net.h says what"), (100, "its door for RPC")])
def test_a_status_is_explained_where_it_is(status: int, hint: str) -> None:
    library = object.__new__(remote_session._BoardLibrary)
    library.__dict__.update(threads=1, _place="p:1", _inputs=[], _outputs=[], _name="net_rpc")
    library._machine = lambda *_: status
    with pytest.raises(BundleMismatchError, match=f"with status {status}") as caught:
        library._call()
    assert caught.value.hint.startswith(hint)


def test_a_damaged_bundle_is_refused_before_the_board_is_asked(bundle: Path) -> None:
    os.truncate(bundle / "model.so", 10)
    with pytest.raises(BundleError), load_remote(bundle, "127.0.0.1:1"):
        pytest.fail("loaded")


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, 1e9])
def test_a_timeout_that_is_none(sound_bundle: Path, timeout: float) -> None:
    with (
        pytest.raises(InputError, match="is out of range"),
        load_remote(sound_bundle, "127.0.0.1:1", timeout=timeout),
    ):
        pytest.fail("loaded")


def test_a_board_that_is_not_there(sound_bundle: Path) -> None:
    with (
        pytest.raises(BoardUnreachableError, match=r"127\.0\.0\.1:1"),
        load_remote(sound_bundle, "127.0.0.1:1"),
    ):
        pytest.fail("loaded")


@pytest.mark.parametrize(
    ("tvm", "ffi", "says"),
    [
        ("0.26.0", "0.1.14.post1", r"TVM 0\.26\.0; .* serves 0\.27"),
        ("0.27.0.post1", "0.1.15", r"apache-tvm-ffi 0\.1\.15; .* serves 0\.1\.14"),
    ],
)
def test_a_board_with_another_tvm_or_ffi(
    bundle: Path, host_board: str, tvm: str, ffi: str, says: str
) -> None:
    rewrite_manifest(bundle, versions={"tvmattend": "0", "tvm": tvm, "tvm_ffi": ffi})
    with (
        pytest.raises(BundleMismatchError, match=says),
        load_remote(bundle, host_board),
    ):
        pytest.fail("loaded")


def test_a_bundle_for_another_machine_says_what_it_is_for(
    a72_bundle: Path, host_board: str
) -> None:
    with (
        pytest.raises(BoardMismatchError, match="the board is x86_64") as caught,
        load_remote(a72_bundle, host_board),
    ):
        pytest.fail("loaded")
    assert "cortex-a72" in caught.value.hint


@pytest.mark.emulated
def test_on_the_emulated_cortex_a72(a72_bundle: Path, emulated_board: str, x: np.ndarray) -> None:
    with load_remote(a72_bundle, emulated_board) as net:
        assert net.board.emulated
        assert max(net.self_test()) < 1e-6
        assert network.relative_error(np.asarray(net(x)), reference(x)) < 1e-6
        assert len(net.time(x, repeat=3)) == 3


@pytest.mark.emulated
def test_a_copied_bundle_runs_on_a_boards_python(
    a72_bundle: Path, device_python: EmulatedPython, tmp_path: Path
) -> None:
    """The bundle's own wrapper, with numpy and apache-tvm-ffi and nothing of ours."""
    place = Path(shutil.copytree(a72_bundle, tmp_path / "copied"))
    program = (
        "import sys, numpy as np; from tvmattend_runtime import load; net = load('.', threads=2); "
        "print(max(net.self_test()), net.threads, net.classify(np.zeros((20, 20, 3), np.uint8))[0])"
    )
    done = device_python.run(["-c", program], cwd=place)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) < 1e-6
    done = device_python.run(["tvmattend_runtime.py"], cwd=place)
    assert done.stdout.startswith("passed"), done.stderr
