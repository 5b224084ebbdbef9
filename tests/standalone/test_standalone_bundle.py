# SPDX-License-Identifier: Apache-2.0
"""`tvmattend build --format standalone`: a bundle that opens like the other, with less inside."""

import ast
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_networks import run
from click.testing import CliRunner, Result
from sample_bundles import rewrite_manifest

from tvmattend.bundle import verify
from tvmattend.cli.build import command
from tvmattend.codegen import build
from tvmattend.device.emulated import EmulatedPython
from tvmattend.errors import BundleMismatchError, TargetError, TvmattendError
from tvmattend.runtime import load, standalone
from tvmattend.runtime.network import BundleError, DeviceError, InputError
from tvmattend.runtime.remote import load_remote
from tvmattend.target import MOST_THREADS, host_target, parse_target


def cli(*words: Any) -> Result:
    result = CliRunner().invoke(command, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network in both formats, for one thread."""
    place = tmp_path_factory.mktemp("formats")
    made = {}
    for kind in ("vm", "standalone"):
        options = ["--model", "attendnext_tiny", "--target", "host", "--threads", 1, "--no-records"]
        result = cli(*options, "--format", kind, "-o", place / kind, "--json", "--verify")
        report = json.loads(result.stdout)
        assert report["verified"]["max_rel_error"] <= 1e-4
        made[kind] = place / kind
    return made


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles["standalone"], tmp_path / "bundle"))


def test_both_formats_open_alike_and_agree_bit_for_bit(bundles: dict[str, Path]) -> None:
    nets = {kind: load(place) for kind, place in bundles.items()}
    assert nets["vm"].inputs == nets["standalone"].inputs
    assert nets["vm"].outputs == nets["standalone"].outputs
    for (x,), _ in nets["vm"].golden():
        assert np.array_equal(nets["vm"](x), nets["standalone"](x))
    assert nets["standalone"].self_test() == nets["vm"].golden_errors()
    photo = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    assert nets["vm"].classify(photo) == nets["standalone"].classify(photo)


def test_the_standalone_one_holds_nothing_of_tvm(bundles: dict[str, Path]) -> None:
    names = {path.name for path in bundles["standalone"].rglob("*")}
    assert names == {
        "README.md", "attendnext_tiny.h", "attendnext_tiny.hpp", "golden.npz",
        "libattendnext_tiny.a", "libattendnext_tiny.so", "manifest.json",
        "tvmattend_runtime.py", "tvmattend_signature.py", "tvmattend_standalone.py",
    }  # fmt: skip
    manifest = verify(bundles["standalone"])
    assert (manifest.format, manifest.library) == ("standalone", "libattendnext_tiny.so")
    assert verify(bundles["vm"]).format == "vm"


def test_the_bundle_runs_by_itself_without_tvm_ffi(bundle: Path) -> None:
    program = (
        "import sys; sys.modules['tvm_ffi'] = None; sys.path.insert(0, sys.argv[1]); "
        "from tvmattend_runtime import load; print(max(load(sys.argv[1]).self_test()))"
    )
    assert float(run([sys.executable, "-c", program, bundle], cwd="/")) <= 1e-4
    assert "passed" in run([sys.executable, bundle / "tvmattend_runtime.py"], cwd="/")
    load(bundle)  # what the import left behind does not make it unsound


def test_a_bundle_that_is_replaced_is_loaded_anew(bundle: Path) -> None:
    (x,), _ = load(bundle).golden()[0]
    before = load(bundle)(x)
    build("attendnext_tiny", host_target(threads=1), output=bundle, force=True,
          use_records=False, format="vm")  # fmt: skip
    assert np.array_equal(load(bundle)(x), before)


def test_a_machine_of_more_cores_than_an_instance_has_threads(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 100)
    built = build("attendnext_tiny", host_target(), output=tmp_path / "many", use_records=False)
    assert built.target.num_cores == standalone._MAX_THREADS == MOST_THREADS == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(100)))
    load(built.directory).self_test()
    rewrite_manifest(bundle, threads=100)  # as from elsewhere
    load(bundle).self_test()
    with pytest.raises(DeviceError, match="no number from 0 to 64"):
        load(bundle, threads=65)
    with pytest.raises(TargetError, match="65 threads, but a standalone library") as refused:
        build("attendnext_tiny", host_target(65), output=tmp_path / "more")
    assert refused.value.hint == "give --threads 64, or build with --format vm"


def test_what_is_missing_or_wrong_is_one_error(bundle: Path) -> None:
    (x,), _ = load(bundle).golden()[0]
    with pytest.raises(InputError, match="CPUs"):
        load(bundle, threads=1000)
    with pytest.raises(InputError, match="got float32") as refused:
        load(bundle)(x[0])
    assert "the batch axis is missing" in refused.value.hint
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "tvmattend_standalone.py").unlink()
    with pytest.raises(BundleError, match=r"tvmattend_standalone\.py is missing"):
        load(bundle)
    del manifest["files"]["libattendnext_tiny.so"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"does not list libattendnext_tiny\.so"):
        load(bundle)


def test_a_library_of_another_network_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["outputs"][0]["shape"] = [1, 11]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="other outputs than said"):
        load(bundle)


def test_an_unknown_format_is_refused_before_any_work(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(TvmattendError, match="no format `library`") as refused:
        build("attendnext_tiny", host_target(1), output=tmp_path / "b", format="library",
              observer=said.append)  # fmt: skip
    assert refused.value.hint == "give vm or standalone"
    assert said == []
    assert not (tmp_path / "b").exists()


def test_musl_is_for_the_standalone_format_only(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="needs glibc"):
        build("attendnext_tiny", host_target(), output=tmp_path / "b", format="vm", libc="musl")


def test_it_runs_over_tvms_rpc(bundles: dict[str, Path], host_board: str) -> None:
    (x,), _ = load(bundles["vm"]).golden()[0]
    expected = load(bundles["vm"])(x)
    with load_remote(bundles["standalone"], host_board) as net:
        assert np.array_equal(net(x), expected)
        assert max(net.self_test()) <= 1e-4
        assert len(net.time(x, repeat=3)) == 3


def test_a_musl_bundle_does_not_go_to_tvms_rpc(bundle: Path, host_board: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "libc": "musl"}))
    with (
        pytest.raises(BundleMismatchError, match="for musl"),
        load_remote(bundle, host_board),
    ):
        pass


def test_a_fork_is_an_error_and_not_a_hang(bundle: Path) -> None:
    """A process that forks after loading: with one thread it works, with more it is told."""
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tvmattend_standalone import Library, LibraryError
import numpy as np
net = Library(sys.argv[1] + "/libattendnext_tiny.so", 2)
x = np.zeros(net.inputs[0].shape, "float32")
net.run([x])
if os.fork() == 0:
    try:
        net.run([x])
    except LibraryError as error:
        os._exit(0 if "fork" in str(error) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    run([sys.executable, "-W", "ignore", "-c", program, bundle])
    assert issubclass(BundleError, DeviceError)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_while_it_runs_is_no_hang(bundle: Path, threads: int) -> None:
    """The child has copies of the lock and of the flag that another thread had taken."""
    program = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from tvmattend_standalone import Library, LibraryError
import numpy as np
threads = int(sys.argv[2])
net = Library(sys.argv[1] + "/libattendnext_tiny.so", threads)
x = np.ones(net.inputs[0].shape, "float32")
(expected,) = net.run([x])
running = threading.Event()
def go():
    running.set()
    net.time([x], 3000, 0)
thread = threading.Thread(target=go)
thread.start()
running.wait()
time.sleep(0.02)
if os.fork() == 0:
    signal.alarm(20)
    try:
        right = np.array_equal(net.run([x])[0], expected)
    except LibraryError as error:
        os._exit(3 if "before a fork" in str(error) else 2)
    net.close()
    os._exit(0 if right else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
thread.join()
"""
    code = run([sys.executable, "-W", "ignore", "-c", program, bundle, str(threads)])
    assert int(code) == (0 if threads == 1 else 3)


@pytest.mark.emulated
def test_the_bundle_on_the_emulated_board(
    device_python: EmulatedPython, emulated_board: str, tmp_path: Path
) -> None:
    """By its own wrapper with numpy alone, and over RPC: the same numbers."""
    target = parse_target("cortex-a72")
    place = tmp_path / "bundle"
    build("attendnext_tiny", target, output=place, format="standalone", use_records=False)
    done = device_python.run([str(place / "tvmattend_runtime.py")])
    assert "passed" in done.stdout, done.stderr
    with load_remote(place, emulated_board) as net:
        assert max(net.self_test()) <= 1e-4


def test_the_loader_is_python_3_9_with_numpy_alone() -> None:
    source = Path(standalone.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert imported <= {"numpy", *sys.stdlib_module_names}
    zips = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.keywords]
    assert not [n for n in zips if getattr(n.func, "id", "") == "zip"], "strict= is of Python 3.10"
