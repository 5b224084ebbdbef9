# SPDX-License-Identifier: Apache-2.0
"""Damage of every kind is refused, by `verify` and by `load`, with nothing of it loaded."""

import ctypes
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_bundles import rehash, rewrite_manifest

from tvmattend.bundle import verify
from tvmattend.errors import BundleError
from tvmattend.runtime import contents, load, network


def test_a_sound_bundle_passes(bundle: Path) -> None:
    manifest = verify(bundle)
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert set(manifest.files) | {"manifest.json"} == on_disk


def test_the_cache_that_python_leaves_in_a_bundle_is_no_damage(bundle: Path) -> None:
    (bundle / "__pycache__").mkdir()
    (bundle / "__pycache__" / "tvmattend_runtime.cpython-311.pyc").write_bytes(b"")
    verify(bundle)
    (bundle / "__pycache__" / "numpy.cpython-311.pyc").write_bytes(b"")
    with pytest.raises(BundleError, match="not part of the bundle"):
        verify(bundle)


def _truncate(bundle: Path) -> None:
    os.truncate(bundle / "model.so", 100)


def _flip(bundle: Path) -> None:
    data = bytearray((bundle / "model.so").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.so").write_bytes(data)


def _link_to_outside(bundle: Path) -> None:
    original = bundle / "model.so"
    original.rename(bundle.parent / "elsewhere.so")
    original.symlink_to(bundle.parent / "elsewhere.so")


def _link_directory(bundle: Path) -> None:
    (bundle / "lib").rename(bundle.parent / "lib")
    (bundle / "lib").symlink_to(bundle.parent / "lib")


def _listed(name: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        files = json.loads((bundle / "manifest.json").read_text())["files"]
        rewrite_manifest(bundle, files={**files, name: files["model.so"]})

    return damage


def _manifest(text: bytes) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        (bundle / "manifest.json").write_bytes(text)

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing library": (lambda b: (b / "model.so").unlink(), r"model\.so is missing"),
    "missing golden": (lambda b: (b / "golden.npz").unlink(), r"golden\.npz is missing"),
    "missing runtime": (lambda b: (b / "lib/libtvm_runtime.so").unlink(), "is missing"),
    "missing manifest": (
        lambda b: (b / "manifest.json").unlink(),
        r"manifest\.json cannot be read",
    ),
    "truncated": (_truncate, "has 100 bytes, not"),
    "one bit": (_flip, "has changed"),
    "extra file": (lambda b: (b / "evil.py").write_text(""), "not part of the bundle"),
    "extra library": (lambda b: (b / "lib/libc.so.6").write_text(""), "not part of the bundle"),
    "extra directory": (lambda b: (b / "more").mkdir(), "not part of the bundle"),
    "symbolic link": (_link_to_outside, "symbolic link"),
    "linked directory": (_link_directory, "symbolic link"),
    "dangling link": (lambda b: (b / "x").symlink_to("nowhere"), "symbolic link"),
    "directory for a file": (
        lambda b: ((b / "model.so").unlink(), (b / "model.so").mkdir()),
        "not part of the bundle",
    ),
    "absolute path": (_listed("/etc/passwd"), "out of the bundle"),
    "parent path": (_listed("../model.so"), "out of the bundle"),
    "hidden parent": (_listed("lib/../../model.so"), "out of the bundle"),
    "unclean path": (_listed("./model.so"), "out of the bundle"),
    "empty path": (_listed(""), "out of the bundle"),
    "newer schema": (lambda b: rewrite_manifest(b, schema=2), "schema 2"),
    "schema 0": (lambda b: rewrite_manifest(b, schema=0), "schema 0, but they begin with 1"),
    "schema -1": (lambda b: rewrite_manifest(b, schema=-1), "schema -1, but they begin"),
    "schema true": (lambda b: rewrite_manifest(b, schema=True), "schema"),
    "no schema": (lambda b: rewrite_manifest(b, schema=None), "schema"),
    "no files": (lambda b: rewrite_manifest(b, files=[]), "files"),
    "cut manifest": (_manifest(b'{"schema": 1, "files'), "not JSON"),
    "binary manifest": (_manifest(b"\xff\xfe\x00"), "not JSON"),
    "deep manifest": (_manifest(b"[" * 100_000), "not JSON"),
    "list manifest": (_manifest(b"[]"), "schema"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("reader", [verify, load])
def test_damage_is_refused_and_nothing_is_loaded(
    bundle: Path, kind: str, reader: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> None:
        pytest.fail(f"something was loaded: {args}")

    monkeypatch.setattr(ctypes, "CDLL", never)
    monkeypatch.setattr(network, "load_runtime", never)
    damage, reason = DAMAGE[kind]
    damage(bundle)
    with pytest.raises((BundleError, network.BundleError)) as caught:
        reader(bundle)
    assert re.search(reason, str(caught.value))
    assert caught.value.exit_code == 14  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)
    assert str(bundle.parent / "sample") not in Path("/proc/self/maps").read_text()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle"):
        verify(tmp_path / "nothing")


def test_what_only_the_strict_reading_sees(bundle: Path) -> None:
    rewrite_manifest(bundle, invented="field")
    with pytest.raises(BundleError, match="invented"):
        verify(bundle)


def test_an_unreadable_file_is_a_bundle_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(contents, "file_sha256", denied)  # root could read it
    with pytest.raises(BundleError, match="Permission denied"):
        verify(bundle)


def test_a_consistent_change_is_not_damage_to_the_files(bundle: Path) -> None:
    (bundle / "README.md").write_text("translated")
    rehash(bundle)
    verify(bundle)
