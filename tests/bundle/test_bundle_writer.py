# SPDX-License-Identifier: Apache-2.0
"""A bundle appears whole or not at all, and takes the place of nothing but a bundle."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_bundles import with_target

from tvmattend.bundle import BundleContents, check_output, verify, write_bundle, writer
from tvmattend.bundle.device_libs import elf_arch
from tvmattend.bundle.wrapper import wrapper_source
from tvmattend.errors import BundleError, OutputExistsError, StorageError


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_written_says_what_went_in(bundle: Path, contents: BundleContents) -> None:
    manifest = verify(bundle)
    assert manifest.model == "sample"
    assert manifest.target == contents.target
    assert manifest.threads == contents.target.num_cores
    assert manifest.inputs == tuple(contents.inputs)
    assert manifest.labels == contents.labels
    assert manifest.records == contents.records
    assert manifest.fusion == contents.fusion
    assert manifest.weights == contents.weights
    assert manifest.versions.tvm_ffi.startswith("0.1.14")
    assert (bundle / "model.so").read_bytes() == contents.library.read_bytes()


def test_the_wrapper_is_the_runtime_as_one_file(bundle: Path) -> None:
    assert (bundle / "tvmattend_runtime.py").read_text() == wrapper_source()


def test_golden_vectors_are_stacked_on_a_first_axis(bundle: Path, contents: BundleContents) -> None:
    with np.load(bundle / "golden.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"input0", "output0"}
        np.testing.assert_array_equal(archive["input0"][2], contents.golden[2][0][0])
        np.testing.assert_array_equal(archive["output0"][1], contents.golden[1][1][0])


def test_all_but_the_weights_is_less_than_ten_megabytes(bundle: Path) -> None:
    sizes = {p: p.stat().st_size for p in bundle.rglob("*") if p.is_file() and p.suffix != ".npz"}
    assert sum(sizes.values()) < 10e6
    assert elf_arch(bundle / "lib/libtvm_runtime.so") == elf_arch(bundle / "model.so")


def test_the_guide_names_what_a_device_needs(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    assert "apache-tvm-ffi==0.1.14" in text
    assert "classify" in text
    assert "pip install pillow" in text
    assert max(map(len, text.splitlines())) <= 120


def test_two_writings_give_the_same_bytes(contents: BundleContents, tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", contents)
    other = write_bundle(tmp_path / "two", contents)
    assert verify(one) == verify(other)


def test_the_directory_is_for_everyone_who_may(contents: BundleContents, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        place = write_bundle(tmp_path / "deep" / "down", contents)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o750
    assert stat.S_IMODE((place / "model.so").stat().st_mode) == 0o640


def test_an_empty_directory_is_taken(contents: BundleContents, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    verify(write_bundle(tmp_path / "out", contents))
    assert _names(tmp_path) == ["out"]


def test_a_bundle_is_replaced_by_force_only(
    bundle: Path, contents: BundleContents, tmp_path: Path
) -> None:
    changed = replace(contents, model="second")
    with pytest.raises(OutputExistsError) as caught:
        write_bundle(bundle, changed)
    assert "--force" in caught.value.hint
    assert verify(bundle).model == "sample"
    write_bundle(bundle, changed, force=True)
    assert verify(bundle).model == "second"
    assert _names(tmp_path) == ["sample"]


def test_a_damaged_bundle_may_be_replaced(bundle: Path, contents: BundleContents) -> None:
    (bundle / "model.so").unlink()
    (bundle / "golden.npz").write_bytes(b"")
    verify(write_bundle(bundle, contents, force=True))


def _my_files(place: Path) -> None:
    place.mkdir()
    (place / "thesis.tex").write_text("three years")


def _bundle_and_mine(place: Path) -> None:
    place.mkdir()
    manifest = {
        "schema": 1, "files": {}, "inputs": [], "outputs": [], "labels": None, "model": "m",
        "preprocessing": None, "target": {}, "threads": 1, "tolerance": 0.1, "versions": {},
    }  # fmt: skip
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "photos").mkdir()
    (place / "photos" / "mine.jpg").write_text("only copy")


def _other_manifest(place: Path) -> None:
    place.mkdir()
    (place / "manifest.json").write_text('{"name": "a web app"}')


def _file(place: Path) -> None:
    place.write_text("a file")


def _link(place: Path) -> None:
    (place.parent / "real").mkdir()
    place.symlink_to(place.parent / "real")


@pytest.mark.parametrize("make", [_my_files, _bundle_and_mine, _other_manifest, _file, _link])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_of_the_users_is_ever_replaced(
    make: Callable[[Path], None], force: bool, contents: BundleContents, tmp_path: Path
) -> None:
    place = tmp_path / "mine"
    make(place)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputExistsError) as caught:
        check_output(place, force=force)
    assert caught.value.exit_code == 12
    with pytest.raises(OutputExistsError):
        write_bundle(place, contents, force=force)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_place_and_a_bundle_to_replace_pass_the_check(bundle: Path, tmp_path: Path) -> None:
    check_output(tmp_path / "not" / "yet", force=False)
    check_output(bundle, force=True)
    assert not (tmp_path / "not").exists()


def test_a_parent_that_is_a_file_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        check_output(tmp_path / "file" / "bundle", force=False)


def test_a_parent_without_permission_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(StorageError, match="cannot be written"):
        check_output(tmp_path / "bundle", force=False)


def _no_space(*args: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def _denied(*args: Any, **options: Any) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied")


def _interrupted(*args: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


STEPS: list[tuple[Any, str]] = [
    (shutil, "copyfile"), (np, "savez_compressed"), (os, "fsync"), (Path, "replace"),
    (Path, "mkdir"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "step"), STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize(
    ("fault", "seen"),
    [(_no_space, StorageError), (_denied, StorageError), (_interrupted, KeyboardInterrupt)],
)
def test_a_failure_at_any_step_leaves_nothing(
    owner: Any,
    step: str,
    fault: Callable[..., Any],
    seen: type[BaseException],
    contents: BundleContents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fault)
        with pytest.raises(seen):
            write_bundle(tmp_path / "out", contents)
    assert _names(tmp_path) == []


def _second_rename_fails(patch: pytest.MonkeyPatch) -> None:
    original = Path.replace

    def rename(path: Path, target: Path) -> Path:
        return (
            _no_space()
            if target.name == "sample" and "old" not in path.name
            else original(path, target)
        )

    patch.setattr(writer, "_exchange", lambda *_: False)
    patch.setattr(Path, "replace", rename)


@pytest.mark.parametrize("step", ["_fill", "_sync", "_exchange", "second rename"])
def test_a_failed_replacement_leaves_the_old_bundle(
    step: str,
    bundle: Path,
    contents: BundleContents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        if step == "second rename":
            _second_rename_fails(patch)
        else:
            patch.setattr(writer, step, _no_space)
        with pytest.raises(StorageError) as caught:
            write_bundle(bundle, replace(contents, model="second"), force=True)
    assert "space" in caught.value.hint
    assert verify(bundle).model == "sample"
    assert _names(tmp_path) == ["sample"]


def test_where_directories_cannot_be_exchanged_two_renames_do(
    bundle: Path, contents: BundleContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_exchange", lambda *_: False)
    write_bundle(bundle, replace(contents, model="second"), force=True)
    assert verify(bundle).model == "second"
    assert _names(tmp_path) == ["sample"]


def test_the_exchange_is_one_step_of_the_kernel(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert writer._exchange(tmp_path / "one", tmp_path / "two")
    assert _names(tmp_path / "one") == ["two"]
    with pytest.raises(FileNotFoundError):
        writer._exchange(tmp_path / "one", tmp_path / "three")


def test_a_library_of_another_architecture_is_refused(
    contents: BundleContents, tmp_path: Path
) -> None:
    foreign = with_target(contents, triple="aarch64-linux-gnu", cpu="cortex-a72")
    with pytest.raises(BundleError, match="x86_64"):
        write_bundle(tmp_path / "out", foreign)
    (tmp_path / "text.so").write_text("not a library at all, really")
    with pytest.raises(BundleError, match="not a shared library"):
        write_bundle(tmp_path / "out", replace(contents, library=tmp_path / "text.so"))


@pytest.mark.parametrize("fault", ["none", "shape", "dtype", "nan", "count"])
def test_golden_vectors_that_do_not_fit_are_a_fault_of_the_build(
    fault: str, contents: BundleContents, tmp_path: Path
) -> None:
    (x,), (y,) = contents.golden[0]
    golden: Any = {
        "none": [],
        "shape": [([x[0]], [y])],
        "dtype": [([x], [y.astype("float64")])],
        "nan": [([x], [y * np.float32("nan")])],
        "count": [([x, x], [y])],
    }[fault]
    with pytest.raises(ValueError, match=r"golden|zip"):
        write_bundle(tmp_path / "out", replace(contents, golden=golden))
    assert _names(tmp_path) == []


def test_a_manifest_that_could_not_be_read_is_not_written(
    contents: BundleContents, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="labels"):
        write_bundle(tmp_path / "out", replace(contents, labels=("too few",)))
    assert _names(tmp_path) == []


def test_the_revision_is_a_commit_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    revision = writer.source_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40
    monkeypatch.setattr(writer, "__file__", "/usr/lib/python3/site-packages/t/bundle/writer.py")
    assert writer.source_revision() is None


def test_an_installed_package_knows_the_revision_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tvmattend" / "bundle").mkdir(parents=True)
    (tmp_path / "tvmattend" / "_revision.txt").write_text("c0ffee\n")
    monkeypatch.setattr(writer, "__file__", str(tmp_path / "tvmattend" / "bundle" / "writer.py"))
    assert writer.source_revision() == "c0ffee"
