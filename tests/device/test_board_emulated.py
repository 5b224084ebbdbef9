# SPDX-License-Identifier: Apache-2.0
"""The emulated Cortex-A72: what it is, what it lacks, and what it survives."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tvmattend.device.board import probe
from tvmattend.device.emulated import EmulatedBoard, EmulatedPython, find_qemu, prepare
from tvmattend.device.endpoint import close_session, connect, parse_endpoint
from tvmattend.errors import BoardMismatchError, ToolMissingError
from tvmattend.target import TargetSpec, parse_target

A72 = parse_target("cortex-a72")
X86 = parse_target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64")


def output(python: EmulatedPython, program: str, cwd: Path) -> str:
    done = python.run(["-c", textwrap.dedent(program)], cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.emulated
def test_probe(emulated_board: str) -> None:
    info = probe(emulated_board, A72)
    assert (info.machine, info.core, info.emulated) == ("aarch64", "cortex-a72", True)
    assert info.tvm_version == "0.27.0.post1"
    assert info.notes == ("the board is emulated: its times say nothing about silicon",)
    assert "EMULATED" in info.describe()
    other = probe(emulated_board, parse_target("cortex-a53"))
    assert "the board's core is cortex-a72, the target's is cortex-a53" in other.notes


@pytest.mark.emulated
def test_a_target_of_another_architecture(emulated_board: str) -> None:
    with pytest.raises(BoardMismatchError, match="the board is aarch64, the target is x86_64"):
        probe(emulated_board, X86)
    probe(emulated_board, A72)


@pytest.mark.emulated
def test_a_core_without_the_targets_instructions(emulated_board: str) -> None:
    sve = parse_target("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72 -mattr=+sve")
    with pytest.raises(BoardMismatchError) as caught:
        probe(emulated_board, sve)
    assert "a kernel for cortex-a72+sve crashed there" in str(caught.value)
    probe(emulated_board, A72)


_TVMS_OWN_SERVER = """
from tvm.rpc import server
print(server._popen_start_rpc_server("127.0.0.1", 19300, 19400), flush=True)
"""


@pytest.mark.emulated
def test_tvms_own_server_on_an_emulated_board(emulated: EmulatedBoard) -> None:
    """It does not say that it is emulated; the name of its process does."""
    with subprocess.Popen(
        emulated.python().command(["-c", _TVMS_OWN_SERVER]),
        env=emulated.python().environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout is not None
        try:
            address = f"127.0.0.1:{int(server.stdout.readline())}"
            info = probe(address, A72)
            assert (info.emulated, info.core, info.tvm_version) == (True, "", "")
            with pytest.raises(BoardMismatchError, match="the board is aarch64"):
                probe(address, X86)
            assert probe(address, A72) == info  # neither refusal nor probe ended it
        finally:
            server.kill()


@pytest.mark.emulated
def test_it_survives_crashes_and_many_sessions(
    emulated: EmulatedBoard, misbehaving: Callable[[TargetSpec], Path], tmp_path: Path
) -> None:
    library = bytearray(misbehaving(A72).read_bytes())
    with emulated.start(log=tmp_path / "log") as server:
        place = parse_endpoint(server.address)
        session = connect(place)
        session.upload(library, "crash.so")
        module = session.load_module("crash.so")
        with pytest.raises(RuntimeError):
            module["crash"]()
        process = psutil.Process(server.pid)
        memory = 0
        for count in range(120):
            session = connect(place)
            session.upload(library, "crash.so")
            session.load_module("crash.so")
            close_session(session)
            if count == 20:
                memory = process.memory_info().rss
        assert process.memory_info().rss - memory < 4_000_000
        zombies = [child for child in process.children() if child.status() == "zombie"]
        assert len(zombies) <= 1  # the last one may be on its way
    assert not process.is_running()
    # Crashes are told, in one line each.
    assert "session 1 " in (tmp_path / "log").read_text()


@pytest.mark.emulated
def test_the_kernels_of_a_tuning_run_are_there(emulated_board: str) -> None:
    """They live in libtvm_runtime_extra.so, which a runtime-only TVM does not load by itself."""
    session = connect(parse_endpoint(emulated_board))
    assert session.get_function("tvm.contrib.random.random_fill_for_measure") is not None
    close_session(session)


@pytest.mark.emulated
def test_the_minimal_python_has_numpy_and_tvm_ffi_and_nothing_else(
    device_python: EmulatedPython,
    emulated: EmulatedBoard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # must not reach the board
    program = """
        import importlib.util, platform, sys
        import numpy, tvm_ffi
        assert platform.machine() == "aarch64"
        assert numpy.arange(4).sum() == 6
        names = ("tvm", "torch", "tvmattend", "PIL", "click", "psutil", "ml_dtypes", "pip")
        print([name for name in names if importlib.util.find_spec(name)])
        root = sys.prefix.removesuffix("/root/usr")
        print([place for place in sys.path if place and not place.startswith(root)])
    """
    assert output(device_python, program, tmp_path).split("\n") == ["[]", "[]"]
    with_pillow = emulated.minimal_python(pillow=True)
    program = "import PIL.Image, importlib.util; print(importlib.util.find_spec('tvm'))"
    assert output(with_pillow, program, tmp_path) == "None"


@pytest.mark.emulated
def test_the_boards_python_has_the_runtime_and_no_compiler(
    emulated: EmulatedBoard, tmp_path: Path
) -> None:
    program = "import tvm; print(tvm.__version__, tvm.base._RUNTIME_ONLY)"
    assert output(emulated.python(), program, tmp_path) == "0.27.0.post1 True"
    assert not list(emulated.place.rglob("libtvm_compiler.so"))
    assert (emulated.runtime / "libtvm_runtime.so").is_file()
    assert emulated.python().command(["-c", "pass"])[1:3] == ["-cpu", "cortex-a72"]


@pytest.mark.emulated
def test_it_is_small_and_comes_from_the_cache(emulated: EmulatedBoard) -> None:
    size = sum(path.lstat().st_size for path in emulated.place.rglob("*") if not path.is_dir())
    assert size < 170e6
    again = prepare(lambda step: pytest.fail(f"prepared again: {step}"))
    assert again == emulated


def test_threads_are_the_boards_or_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    python = EmulatedPython("qemu-aarch64", Path("/r"), Path("/r/python"), (Path("/p"),))
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert python.environment()["TVM_NUM_THREADS"] == "4"
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert python.environment()["TVM_NUM_THREADS"] == "2"
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    assert python.environment()["TVM_NUM_THREADS"] == "3"
    assert python.environment({"TVM_NUM_THREADS": "1"})["TVM_NUM_THREADS"] == "1"
    monkeypatch.setenv("LD_PRELOAD", "x")
    assert "LD_PRELOAD" not in python.environment()


def test_without_qemu_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError) as caught:
        find_qemu()
    assert "qemu-user" in caught.value.hint
    assert caught.value.exit_code == 10


_PREPARE = """
import sys, time
from tvmattend.device import emulated

def build(qemu, progress, place):
    print("built", flush=True)
    (place / "root").mkdir()
    time.sleep(0.5)
    (place / "root" / "done").touch()

emulated._build = build
board = emulated.prepare(lambda step: print(step))
assert (board.root / "done").exists()
print(board.place)
"""


def test_of_two_at_once_one_prepares_and_the_other_waits(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TVMATTEND_CACHE": str(tmp_path / "cache"),
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _PREPARE], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=30)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(lines.count("built") for lines in told) == 1
    assert told[0][-1] == told[1][-1]
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {Path(told[0][-1]).name, "emulated-cortex-a72.lock"}


def test_a_first_run_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(packages: object, architecture: str, root: Path, *_: object) -> None:
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/python3.11").touch()

    def run(*_: object, **options: Any) -> None:
        raise subprocess.TimeoutExpired("qemu-aarch64", options["timeout"])

    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path))
    monkeypatch.setattr("tvmattend.device.emulated.unpack_packages", unpack)
    monkeypatch.setattr("tvmattend.device.emulated.install_wheels", lambda *_: None)
    monkeypatch.setattr("tvmattend.device.emulated.subprocess.run", run)
    with pytest.raises(ToolMissingError, match="not ready after 300 s") as caught:
        prepare()
    assert "busy" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["emulated-cortex-a72.lock"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path))

    def build(qemu: str, progress: object, place: Path) -> None:
        (place / "half").touch()
        raise ToolMissingError("no network")

    monkeypatch.setattr("tvmattend.device.emulated._build", build)
    with pytest.raises(ToolMissingError, match="no network"):
        prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["emulated-cortex-a72.lock"]
