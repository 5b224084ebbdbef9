# SPDX-License-Identifier: Apache-2.0
"""Room and permission: what is asked for, and how a full disk is told."""

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest

from tvmattend import storage
from tvmattend.errors import StorageError


def test_a_file_system_with_too_little_room_is_named(tmp_path: Path) -> None:
    storage.require_room(tmp_path / "not" / "there", 1, "")
    with pytest.raises(StorageError, match=f"file system of {tmp_path} has .* MB free") as caught:
        storage.require_room(tmp_path / "not" / "there", 10**18, "free some")
    assert caught.value.hint == "free some"
    assert "1000000000000 MB are needed" in str(caught.value)


def test_the_temporary_directory_is_tmpdir_even_if_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert storage.temporary_directory() == tmp_path
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert storage.temporary_directory().is_dir()


@pytest.mark.parametrize(
    "code",
    [
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EFBIG, errno.EMFILE, errno.ENFILE),
    ],
)
def test_the_disks_faults_are_the_users_to_mend(code: int) -> None:
    fault = storage.storage_fault(OSError(code, os.strerror(code), "some/file"))
    assert fault is not None
    assert fault.exit_code == 13
    assert str(fault) == f"some/file: {os.strerror(code)}"
    assert fault.hint


def test_a_full_disk_is_named_also_where_the_error_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "tvmattend"
    cache.mkdir()
    usage = shutil.disk_usage
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda place: usage(place)._replace(free=0 if Path(place) == cache else 1 << 40),
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen, base in (("~/tvmattend", "/nowhere"), ("", str(tmp_path))):
        monkeypatch.setenv("TVMATTEND_CACHE", chosen)
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        fault = storage.storage_fault(OSError(errno.ENOSPC, "No space left on device"))
        assert str(fault) == f"{cache}: No space left on device"


def test_without_a_home_the_cache_wants_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: object) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "TVMATTEND_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(StorageError, match="no home directory") as caught:
        storage.cache_root()
    assert "TVMATTEND_CACHE" in caught.value.hint


def test_a_file_system_without_any_size_is_not_full() -> None:
    assert shutil.disk_usage("/proc").total == 0
    storage.require_room(Path("/proc/x"), 1 << 20, "")  # fails with a StorageError


def test_a_current_directory_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("x").absolute()
    fault = storage.storage_fault(caught.value)
    assert fault is not None
    assert str(fault) == "the current directory was removed"
    assert fault.hint


def test_other_faults_are_not() -> None:
    assert storage.storage_fault(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert storage.storage_fault(FileNotFoundError(errno.ENOENT, "No such file")) is None


@pytest.mark.parametrize(
    "text",
    [
        "ERROR: Could not install: [Errno 28] No space left on device",
        "E: You don't have enough free space in /x/archives/.",
        "error: NoSpaceLeft",
        "LLVM ERROR: IO failure on output stream: Disk quota exceeded",
        "LLVM ERROR: IO failure on output stream: File too large",
        "error: FileTooBig",
        "collect2: fatal error: ld terminated with signal 25 [File size limit exceeded]",
        "linking x.so: [Errno 24] Too many open files",
    ],
)
def test_programs_that_meet_a_full_disk_are_understood(text: str) -> None:
    assert storage.says_full(text)
    assert not storage.says_full("E: Unable to locate package, error 280")


def test_room_is_what_can_be_written(tmp_path: Path) -> None:
    assert storage.no_room(tmp_path, 3 << 20) is None
    assert not list(tmp_path.iterdir())
    gone = storage.no_room(tmp_path / "gone", 1)
    assert gone is not None
    assert str(gone) == f"cannot write to `{tmp_path}/gone`: No such file or directory"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        assert storage.no_room(tmp_path, 1 << 20) is None
        large = storage.no_room(tmp_path, 2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert large is not None
    assert str(large) == f"cannot write to `{tmp_path}`: File too large"
    assert "ulimit -f" in large.hint


def test_a_full_disk_shows_where_it_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    fault = storage.no_room(tmp_path, 1)
    assert fault is not None
    assert str(fault) == f"no space left in `{tmp_path}`"
    assert "TMPDIR" in fault.hint


def test_new_directories_go_again_unless_something_is_in_them(tmp_path: Path) -> None:
    with storage.directories_for(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with storage.directories_for(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]
    with storage.directories_for(tmp_path / "a"):
        pass
    assert (tmp_path / "a").is_dir()
