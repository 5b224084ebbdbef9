# SPDX-License-Identifier: Apache-2.0
"""The cache directory: complete or absent, and an error with a remedy where there is no room."""

import errno
from pathlib import Path

import pytest

from tvmattend.cache import prepared
from tvmattend.device import emulated
from tvmattend.errors import StorageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_prepared_is_not_prepared_again(cache: Path) -> None:
    built: list[Path] = []
    first = prepared("thing", {"a": 1}, built.append, print, need=1)
    assert prepared("thing", {"a": 1}, built.append, print, need=10**18) == first
    assert len(built) == 1
    assert first.parent == cache


def test_room_is_asked_for_before_anything_is_made(cache: Path) -> None:
    with pytest.raises(StorageError, match="no space left") as caught:
        prepared("thing", {}, lambda _: pytest.fail("built"), print, need=10**18)
    assert str(cache.parent) in str(caught.value)
    assert "TVMATTEND_CACHE" in caught.value.hint
    assert not cache.exists()


def test_a_disk_that_fills_up_meanwhile_keeps_nothing_half_made(cache: Path) -> None:
    def fill(place: Path) -> None:
        (place / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left") as caught:
        prepared("thing", {}, fill, print)
    assert "TVMATTEND_CACHE" in caught.value.hint
    assert [path.name for path in cache.iterdir()] == ["thing.lock"]


def test_the_emulated_board_asks_for_its_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "find_qemu", lambda: "qemu")
    monkeypatch.setattr(emulated, "_BYTES", 10**18)
    monkeypatch.setattr(emulated, "_build", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(StorageError, match="no space left"):
        emulated.prepare()
    assert not cache.exists()
