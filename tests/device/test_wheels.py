# SPDX-License-Identifier: Apache-2.0
"""Wheels for another machine, from an index of our own making."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tvmattend.device.wheels import download_wheels, install_wheels, unpack_wheel
from tvmattend.errors import StorageError, ToolMissingError

_METADATA = "Metadata-Version: 2.1\nName: board-thing\nVersion: {}\n"


def wheel(directory: Path, version: str, tag: str) -> Path:
    directory.mkdir(exist_ok=True)
    info = f"board_thing-{version}.dist-info"
    path = directory / f"board_thing-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("board_thing/__init__.py", f"VERSION = '{version}'\n")
        archive.writestr("board_thing/tests/test_thing.py", "")
        archive.writestr(f"board_thing-{version}.data/scripts/thing", "#!python\n")
        archive.writestr(f"{info}/METADATA", _METADATA.format(version))
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def test_the_wheel_of_that_machine_is_taken(index: Path, tmp_path: Path) -> None:
    wanted = wheel(index, "1.0", "cp311-cp311-manylinux_2_27_aarch64")
    wheel(index, "1.0", "cp311-cp311-manylinux_2_28_x86_64")
    wheel(index, "1.0", "cp312-cp312-manylinux_2_28_aarch64")
    wheel(index, "2.0", "cp311-cp311-manylinux_2_34_aarch64")  # a newer C library than it has
    found = download_wheels(["Board.Thing>=1"], tmp_path / "d", "aarch64", "3.11")
    assert [path.name for path in found] == [wanted.name]


def test_a_wheel_that_does_not_exist_is_named(index: Path, tmp_path: Path) -> None:
    wheel(index, "1.0", "cp311-cp311-manylinux_2_28_x86_64")
    with pytest.raises(ToolMissingError) as caught:
        download_wheels(["board-thing==1.0"], tmp_path / "d", "aarch64", "3.11")
    assert "board-thing==1.0" in str(caught.value)
    assert "aarch64 and Python 3.11" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_pip_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ToolMissingError, match="has no pip"):
        download_wheels(["board-thing"], tmp_path, "aarch64", "3.11")


def test_unpacking_leaves_out_what_is_not_wanted(tmp_path: Path) -> None:
    path = wheel(tmp_path / "index", "1.0", "py3-none-any")
    unpack_wheel(path, tmp_path / "site", leave_out="/tests/")
    assert sorted(place.name for place in (tmp_path / "site").iterdir()) == [
        "board_thing",
        "board_thing-1.0.dist-info",
    ]
    assert not (tmp_path / "site/board_thing/tests").exists()
    unpack_wheel(path, tmp_path / "all")
    assert (tmp_path / "all/board_thing/tests/test_thing.py").exists()


def test_what_is_installed_leaves_no_download(index: Path, tmp_path: Path) -> None:
    wheel(index, "1.0", "cp311-cp311-manylinux_2_28_aarch64")
    install_wheels(["board-thing"], tmp_path / "site", "aarch64", "3.11", "/tests/|dist-info/")
    found = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert found == [tmp_path / "site/board_thing/__init__.py"]


def test_a_damaged_wheel(tmp_path: Path) -> None:
    path = wheel(tmp_path / "index", "1.0", "py3-none-any")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        StorageError, match=r"board_thing-1\.0-py3-none-any\.whl is damaged"
    ) as caught:
        unpack_wheel(path, tmp_path / "site")
    assert "try again" in caught.value.hint
    assert "delete" not in caught.value.hint  # the cache has removed it


def test_a_pip_that_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)
    with pytest.raises(ToolMissingError, match="0 wheels of board-thing") as caught:
        download_wheels(["board-thing"], tmp_path / "d", "aarch64", "3.11")
    assert "pip config list" in caught.value.hint


def test_a_full_disk_is_told_from_a_wheel_that_is_not_there(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        said = "ERROR: Could not install packages: [Errno 28] No space left on device\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr("subprocess.run", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        download_wheels(["board-thing"], tmp_path / "d", "aarch64", "3.11")
    assert str(tmp_path / "d") in str(caught.value)
    assert "TVMATTEND_CACHE" in caught.value.hint


def test_pip_works_where_the_room_was_checked(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def look(command: list[str], env: dict[str, str], **_: Any) -> Any:
        seen.update(env)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: stopped")

    monkeypatch.setattr("subprocess.run", look)
    with pytest.raises(ToolMissingError, match="stopped"):
        download_wheels(["board-thing"], tmp_path / "d", "aarch64", "3.11")
    assert seen["TMPDIR"] == str(tmp_path / "d")
