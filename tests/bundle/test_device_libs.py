# SPDX-License-Identifier: Apache-2.0
"""The runtime that goes into `lib/`: of the right machine, whole, and no more than is needed."""

import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from sample_bundles import compile_library

from tvmattend.bundle import BundleContents, device_libs
from tvmattend.errors import BundleError, ToolMissingError
from tvmattend.target import host_target, parse_target

MINIMUM = {device_libs.RUNTIME, device_libs.FFI}


def test_a_network_of_ordinary_operators_needs_two_libraries(contents: BundleContents) -> None:
    found = device_libs.device_libraries(contents.target, contents.library)
    assert {name for name in found if name.endswith(".so")} == MINIMUM
    assert {"licenses/LICENSE.tvm", "licenses/NOTICE.tvm-ffi"} <= set(found)


def test_a_network_that_sorts_needs_the_external_kernels(tmp_path: Path) -> None:
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.argsort(x, axis=1))
        builder.emit_func_output(out)
    target = host_target(threads=1)
    library = compile_library(builder.get(), target, tmp_path / "sort.so")
    assert device_libs.EXTRA in device_libs.device_libraries(target, library)


def test_another_architecture_comes_from_its_wheels_once(
    contents: BundleContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheels are made here: whether pip can download is the emulated board's test."""
    downloads = []

    def download(
        pins: Sequence[str], destination: Path, arch: str, python: str, glibc_minor: int = 28
    ) -> list[Path]:
        downloads.append((list(pins), arch))
        return [_wheel(destination, pin) for pin in pins]

    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device_libs, "download_wheels", download)
    lines: list[str] = []
    a72 = parse_target("cortex-a72")
    found = device_libs.device_libraries(a72, contents.library, lines.append)
    assert {name for name in found if name.endswith(".so")} == MINIMUM
    assert device_libs.elf_arch(found[device_libs.RUNTIME]) == "aarch64"
    assert len(lines) == 1
    assert device_libs.device_libraries(a72, contents.library) == found
    pins = [f"{name}=={metadata.version(name)}" for name in ("apache-tvm", "apache-tvm-ffi")]
    assert downloads == [(pins, "aarch64")]


def test_a_failed_download_is_told_and_leaves_nothing(
    contents: BundleContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: object) -> list[Path]:
        raise ToolMissingError("no network", "check it")

    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device_libs, "download_wheels", download)
    with pytest.raises(ToolMissingError, match="no network"):
        device_libs.device_libraries(parse_target("cortex-a72"), contents.library)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["runtime-aarch64.lock"]


def _wheel(directory: Path, pin: str) -> Path:
    name, version = pin.replace("-", "_").split("==")
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for owner, member in device_libs._MEMBERS.values():
            if owner == pin.split("==", maxsplit=1)[0]:
                elf = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00"  # EM_AARCH64
                archive.writestr(member.replace("*", f"{name}-{version}"), elf)
    return path


@pytest.mark.parametrize("data", [b"", b"MZ" + bytes(30), b"\x7fELF\x01" + bytes(30)])
def test_what_is_no_library(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(data)
    with pytest.raises(BundleError, match="not a shared library"):
        device_libs.elf_arch(tmp_path / "x.so")
