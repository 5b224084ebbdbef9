# SPDX-License-Identifier: Apache-2.0
"""The file in the bundle: it stands alone, in Python 3.9, with numpy and tvm_ffi and no more."""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sample_bundles import INPUT, reference, rehash, rewrite_manifest

from tvmattend.bundle.wrapper import MODULES, wrapper_source
from tvmattend.runtime import network

SOURCE = wrapper_source()
ALLOWED = {"numpy", "tvm_ffi", "PIL", "__future__", *sys.stdlib_module_names}


def _imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import has no package in a bundle"
            names.add((node.module or "").split(".")[0])
    return names


def test_it_imports_the_standard_library_numpy_and_tvm_ffi_only() -> None:
    assert _imports(ast.parse(SOURCE)) <= ALLOWED
    at_import = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.stmt)]
    top = set().union(*(_imports(node) for node in at_import if "Import" in type(node).__name__))
    assert top.isdisjoint({"tvm_ffi", "PIL"}), "loaded before the files are checked"


def test_no_name_of_a_module_hides_that_of_another() -> None:
    """Joined into one file, they share their names."""
    names = [
        target.id
        for node in ast.parse(SOURCE).body
        for target in (getattr(node, "targets", None) or [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    ]
    names += [
        node.name
        for node in ast.parse(SOURCE).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))
    assert {"load", "Network", "check_files", "_main", "SCHEMA"} <= set(names)


def test_all_that_the_runtime_stands_on_is_in_it() -> None:
    home = Path(network.__file__).parent
    alone = {"__init__", "remote", "remote_session", "signature", "standalone"}
    assert {path.stem for path in home.glob("*.py")} - alone == set(MODULES)


def test_it_is_python_3_9() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 9))
    used = {
        getattr(node, field)
        for node in ast.walk(tree)
        for field in ("id", "attr", "arg")
        if isinstance(getattr(node, field, None), str)
    }
    assert used.isdisjoint({"StrEnum", "TypeAlias", "ParamSpec", "kw_only", "slots", "pairwise"})
    zips = [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "zip" and call.keywords
    ]
    assert not zips, "zip(strict=) is of Python 3.10"


@pytest.fixture(scope="session")
def bare_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what `pip install numpy apache-tvm-ffi` brings, and nothing else."""
    place = tmp_path_factory.mktemp("packages")
    for name in ("numpy", "tvm_ffi", "typing_extensions"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        source = source.parent if source.name == "__init__.py" else source
        (place / source.name).symlink_to(source)
        libraries = source.parent / f"{name}.libs"
        if libraries.is_dir():
            (place / libraries.name).symlink_to(libraries)
    return place


def _run(bundle: Path, packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python that sees a bundle and a device's packages: no site-packages, no environment."""
    start = "import sys; sys.path[:0] = sys.argv[1:3]; del sys.argv[1:3]; "
    program, *rest = arguments
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + program, str(bundle), str(packages), *rest],
        check=False, capture_output=True, text=True, cwd="/", env={}, timeout=120,
    )  # fmt: skip


SCRIPT = """
import json, pathlib, numpy as np
from tvmattend_runtime import load
net = load(sys.argv[1])
x = np.load(sys.argv[2])
maps = pathlib.Path('/proc/self/maps').read_text()
print(json.dumps({
    'y': np.asarray(net(x)).tolist(), 'errors': net.self_test(),
    'modules': sorted({name.split('.')[0] for name in sys.modules}),
    'libraries': sorted({line.split(None, 5)[5] for line in maps.splitlines() if 'libtvm' in line}),
    'top': net.classify(np.zeros((30, 20, 3), np.uint8), top=1),
}))
"""


def test_a_copied_bundle_runs_with_numpy_and_tvm_ffi_alone(
    sound_bundle: Path, bare_packages: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(sound_bundle, tmp_path / "on a device"))
    x = np.random.default_rng(4).standard_normal(INPUT.shape).astype("float32")
    np.save(tmp_path / "x.npy", x)
    done = _run(place, bare_packages, SCRIPT, str(place), str(tmp_path / "x.npy"))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert network.relative_error(np.array(said["y"], "float32"), reference(x)) < 1e-6
    assert max(said["errors"]) < 1e-6
    assert {"tvm", "torch", "tvmattend", "PIL"}.isdisjoint(said["modules"])
    assert str(place / "lib" / "libtvm_runtime.so") in said["libraries"]
    assert said["top"][0][1] in {"cat", "dog", "jackal", "teapot", "violin"}


MAIN = "import runpy; sys.argv[0] = 'x'; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def test_as_a_program_it_tests_itself(sound_bundle: Path, bare_packages: Path) -> None:
    done = _run(sound_bundle, bare_packages, MAIN, str(sound_bundle / "tvmattend_runtime.py"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("passed")


def test_as_a_program_it_fails_with_the_errors_exit_code(bundle: Path, bare_packages: Path) -> None:
    (bundle / "golden.npz").unlink()
    done = _run(bundle, bare_packages, MAIN, str(bundle / "tvmattend_runtime.py"))
    assert done.returncode == 14
    assert done.stderr.splitlines() == [
        f"error: {bundle / 'golden.npz'} is missing",
        "hint: copy or build the bundle again",
    ]


def test_two_bundles_with_a_wrapper_each_share_a_process(
    sound_bundle: Path, bare_packages: Path, tmp_path: Path
) -> None:
    """Two copies of TVM's runtime in a process would abort it."""
    places = [Path(shutil.copytree(sound_bundle, tmp_path / name)) for name in ("a", "b")]
    program = """
import runpy
one, two = (runpy.run_path(p + '/tvmattend_runtime.py')['load'](p) for p in sys.argv[1:])
print(max(one.self_test() + two.self_test()))
"""
    done = _run(places[0], bare_packages, program, *map(str, places))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6


def test_a_real_fork_is_an_error_and_not_a_hang(sound_bundle: Path, bare_packages: Path) -> None:
    program = """
import os, numpy as np
from tvmattend_runtime import DeviceError, load
net = load(sys.argv[1])
net.self_test()
if os.fork() == 0:
    try:
        net.self_test()
    except DeviceError as error:
        print(error, error.hint, flush=True)
    print(max(load(sys.argv[1]).self_test()) < 1e-4, flush=True)
    os._exit(0)
os.wait()
"""
    done = _run(sound_bundle, bare_packages, program, str(sound_bundle))
    assert done.returncode == 0, done.stderr
    told, works = done.stdout.splitlines()
    assert told == "the bundle was loaded before a fork load it in the child process"
    assert works == "True"


def test_one_thread_makes_no_workers(sound_bundle: Path, bare_packages: Path) -> None:
    program = """
import os
import numpy, tvm_ffi
from tvmattend_runtime import load
before = len(os.listdir('/proc/self/task'))
load(sys.argv[1], threads=1).self_test()
print(len(os.listdir('/proc/self/task')) - before)
"""
    done = _run(sound_bundle, bare_packages, program, str(sound_bundle))
    assert done.stdout == "1\n", done.stderr  # the thread that calls the kernels


def test_kernels_may_be_loaded_before_tvm_is_imported(sound_bundle: Path) -> None:
    """On a host the bundle takes the installed runtime, so that `import tvm` finds itself."""
    program = (
        "import sys; from tvmattend.runtime import load; net = load(sys.argv[1]); "
        "import tvm; print(max(net.self_test()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(sound_bundle)],
        check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(network.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6


def test_a_process_with_another_tvm_says_both_versions(
    sound_bundle: Path, bundle: Path, bare_packages: Path
) -> None:
    """A bundle of today's TVM is loaded; then comes one that was made with another."""
    library = bundle / "lib" / "libtvm_runtime.so"
    library.write_bytes(library.read_bytes() + b"of another version")
    rewrite_manifest(bundle, versions={"tvmattend": "9", "tvm": "9.9.9", "tvm_ffi": "0.1.14"})
    rehash(bundle)
    program = """
from tvmattend_runtime import BundleMismatchError, load
load(sys.argv[1])
try:
    load(sys.argv[2])
except BundleMismatchError as error:
    print(error)
"""
    done = _run(sound_bundle, bare_packages, program, str(sound_bundle), str(bundle))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the bundle needs TVM 9.9.9; this process has 0.27.0")
