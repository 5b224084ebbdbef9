# SPDX-License-Identifier: Apache-2.0
"""The programs under `examples/`, built as their README says, agree with the Python runtime."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tvmattend.bundle import BundleContents, RecordCounts, Weights, write_bundle
from tvmattend.codegen.schedule import schedule_kernels
from tvmattend.device.emulated import EmulatedPython, find_qemu
from tvmattend.frontend import ImportedModel, import_model
from tvmattend.runtime import load
from tvmattend.runtime.network import Prediction, preprocess
from tvmattend.standalone import Libc, elf, emit
from tvmattend.target import TargetSpec, host_target, parse_target
from tvmattend.transform import lower
from tvmattend.tuning.records import RecordSet

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def imported() -> ImportedModel:
    return import_model("attendnext_tiny")


def make_bundle(
    imported: ImportedModel, target: TargetSpec, place: Path, libc: Libc = "glibc"
) -> Path:
    """The smallest network under the name that the examples are written for."""
    scheduled = schedule_kernels(lower(imported.ir_module, target), target, RecordSet()).mod
    place.mkdir(exist_ok=True)
    files = emit(scheduled, imported, target, place, libc=libc, name="attendnext")
    assert imported.preprocessing is not None
    contents = BundleContents(
        library=files.shared,
        target=target,
        model=imported.name,
        inputs=imported.inputs,
        outputs=imported.outputs,
        golden=[(x, imported.reference(x)) for x in imported.sample_inputs(2)],
        reference=imported.reference_name,
        weights=Weights(imported.weights),
        records=RecordCounts(),
        classes=imported.classes,
        preprocessing=imported.preprocessing,
        format="standalone",
        libc=libc,
        extra=files.paths[1:],
    )
    return write_bundle(place / "bundle", contents)


@pytest.fixture(scope="module")
def bundle(imported: ImportedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(imported, host_target(threads=2), tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "np.ndarray"]:
    """A photograph as a decoder writes it, comment and all, and its pixels."""
    from sklearn.datasets import load_sample_image

    pixels = np.asarray(load_sample_image("china.jpg"))
    height, width, _ = pixels.shape
    path = tmp_path_factory.mktemp("photo") / "china.ppm"
    header = f"P6\n# a photograph\n{width} {height}\n255\n".encode()
    path.write_bytes(header + pixels.tobytes())
    return path, pixels


def run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


def check_top(printed: str, expected: list[Prediction]) -> None:
    rows = [line.split("\t") for line in printed.splitlines()]
    assert [int(row[0]) for row in rows] == [prediction.class_index for prediction in expected]
    for row, prediction in zip(rows, expected, strict=True):
        assert abs(float(row[1]) - prediction.probability) < 2e-5


@pytest.fixture(scope="module")
def expected(
    imported: ImportedModel, bundle: Path, photo: tuple[Path, np.ndarray]
) -> list[Prediction]:
    """PyTorch's own top five of the photograph."""
    net = load(bundle)
    x = preprocess(photo[1], net.manifest["preprocessing"])
    return net.ranked(imported.reference([x])[0])


def build_apps(bundle: Path, place: Path, *options: str) -> Path:
    configure = ["cmake", "-S", EXAMPLES, "-B", place, f"-DBUNDLE={bundle}", *options]
    run([*configure, "-DCMAKE_C_FLAGS=-Werror", "-DCMAKE_CXX_FLAGS=-Werror"])
    run(["cmake", "--build", place])
    return place


@pytest.fixture(scope="module")
def apps(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert shutil.which("cmake"), "install cmake (Debian: `apt-get install cmake g++`)"
    return build_apps(bundle, tmp_path_factory.mktemp("apps"))


@pytest.mark.parametrize("app", ["classify", "classify_cpp"])
@pytest.mark.parametrize("threads", [[], ["1"], ["4"]])
def test_c_and_cpp_name_what_pytorch_names(
    apps: Path,
    photo: tuple[Path, np.ndarray],
    expected: list[Prediction],
    app: str,
    threads: list[str],
) -> None:
    check_top(run([apps / app, photo[0], *threads]), expected)


def test_python_names_it_too(
    bundle: Path, photo: tuple[Path, np.ndarray], expected: list[Prediction]
) -> None:
    app = EXAMPLES / "python" / "classify.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    printed = run([sys.executable, app, bundle, photo[0]], env=environment, cwd="/")
    check_top(printed, expected)


@pytest.mark.parametrize("app", ["classify", "classify_cpp"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"P5\n1 1\n255\n\0", "not a binary PPM"),
        (b"P6\n4 4\n255\n\0\0\0", "ends too early"),
        (b"P6\n99999 4\n255\n", "no size"),
        (b"P6\n1 1\n65535\n\0\0\0\0\0\0", "8 bits"),
        (b"P6\n1 1", "no size"),
        (b"", "not a binary PPM"),
        (None, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_picture_is_an_error(
    apps: Path, tmp_path: Path, app: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "photo.ppm"
    if content is not None:
        path.write_bytes(content)
    check_refused([apps / app, path], reason)


@pytest.mark.parametrize("app", ["classify", "classify_cpp"])
def test_threads_that_are_no_number_are_an_error(
    apps: Path, photo: tuple[Path, np.ndarray], app: str
) -> None:
    for word in ("four", "4x", ""):
        check_refused([apps / app, photo[0], word], "usage", code=2)
    check_refused([apps / app, photo[0], "65"], "65 threads asked for")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a binary PPM"),
        (b"P6", "not a binary PPM"),
        (b"P5\n1 1\n255\n\0", "not a binary PPM"),
        (b"P6\n1 1\n65535\n\0\0\0\0\0\0", "not a binary PPM"),
        (b"P6\n4 4\n255\n\0\0\0", "ends too early"),
        (b"P6\n0 4\n255\n", "ends too early"),
        (None, "No such file"),
    ],
)
def test_the_python_app_says_what_is_wrong_with_a_picture(
    bundle: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "photo.ppm"
    if content is not None:
        path.write_bytes(content)
    check_refused([sys.executable, EXAMPLES / "python" / "classify.py", bundle, path], reason)


def test_the_python_app_says_what_is_wrong_with_its_words(
    bundle: Path, photo: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    app = [sys.executable, EXAMPLES / "python" / "classify.py"]
    check_refused([*app, tmp_path, photo[0]], "there is no bundle")
    check_refused([*app, bundle, photo[0], "four"], "usage")
    check_refused([*app, bundle, photo[0], "1000"], "CPUs")
    check_refused([*app, bundle], "usage")


def check_refused(command: list[str | Path], reason: str, code: int = 1) -> None:
    """The program says in a line or two on stderr what is wrong, and nothing on stdout."""
    done = subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_cmake_says_when_there_is_no_bundle(tmp_path: Path) -> None:
    command = ["cmake", "-S", EXAMPLES, "-B", tmp_path / "build", f"-DBUNDLE={tmp_path}"]
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "--format standalone" in " ".join(done.stderr.split())


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("app", "cpp"),
    # Zig builds libc++ for musl first: two minutes.
    [("classify", "OFF"), pytest.param("classify_cpp", "ON", marks=pytest.mark.long)],
)
def test_static_programs_run_on_the_emulated_board(
    imported: ImportedModel,
    photo: tuple[Path, np.ndarray],
    expected: list[Prediction],
    tmp_path: Path,
    app: str,
    cpp: str,
) -> None:
    bundle = make_bundle(imported, parse_target("cortex-a72"), tmp_path, "musl")
    options = ["-DSTATIC=ON", f"-DCPP={cpp}", *cross_options()]
    apps = build_apps(bundle, tmp_path / "apps", *options)
    qemu = [find_qemu(), "-cpu", "cortex-a72"]
    check_top(run([*qemu, apps / app, photo[0], "4"]), expected)


def cross_options() -> list[str]:
    toolchain = EXAMPLES / "zig-aarch64.cmake"
    return [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-DPYTHON={sys.executable}"]


@pytest.mark.emulated
def test_programs_with_the_boards_glibc_run_on_it(
    imported: ImportedModel,
    device_python: EmulatedPython,
    photo: tuple[Path, np.ndarray],
    expected: list[Prediction],
    tmp_path: Path,
) -> None:
    """The one in C with the shared library, the one in C++ with the static one inside."""
    bundle = make_bundle(imported, parse_target("cortex-a72"), tmp_path)
    apps = build_apps(bundle, tmp_path / "apps", "-DLIBC=glibc", *cross_options())
    qemu = [find_qemu(), "-cpu", "cortex-a72", "-L", device_python.root]
    for app in ("classify", "classify_cpp"):
        needed = elf.needed(apps / app)
        assert "libc.so.6" in needed
        assert ("libattendnext.so" in needed) == (app == "classify")
        check_top(run([*qemu, apps / app, photo[0], "4"]), expected)


@pytest.mark.emulated
def test_the_python_app_runs_on_the_emulated_board(
    imported: ImportedModel,
    device_python: EmulatedPython,
    photo: tuple[Path, np.ndarray],
    expected: list[Prediction],
    tmp_path: Path,
) -> None:
    bundle = make_bundle(imported, parse_target("cortex-a72"), tmp_path)
    app = EXAMPLES / "python" / "classify.py"
    done = device_python.run([str(app), str(bundle), str(photo[0])])
    assert done.returncode == 0, done.stderr
    check_top(done.stdout, expected)
