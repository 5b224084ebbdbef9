# SPDX-License-Identifier: Apache-2.0
"""Room and permission on file systems, asked for before work starts rather than during it.

LLVM ends the process when it cannot write an object file, so that a full disk found late is no
error that could be caught.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tvmattend.errors import StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_LIMITS = {
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "this machine has too many files open; end what you do not need",
}

# How apt, pip, Zig, GCC and LLVM say it.
_FULL_TEXT = re.compile(
    r"no space left|nospaceleft|enough free space|disk quota|IO failure on output stream"
    r"|file too large|filetoobig|file size limit|too many open files|fdquotaexceeded"
    r"|\[errno (23|24|27|28|122)\]",
    re.IGNORECASE,
)
_CHUNK = 1 << 20


def temporary_directory() -> Path:
    """Where programs that we start put their files: `$TMPDIR`, even if it is full.

    `tempfile.gettempdir()` silently takes another place than a full `$TMPDIR`; compilers do not.
    """
    chosen = os.environ.get("TMPDIR", "")
    return Path(chosen) if chosen and Path(chosen).is_dir() else Path(tempfile.gettempdir())


def cache_root() -> Path:
    """Give the cache directory: `$TVMATTEND_CACHE`, else `tvmattend` in the user's cache.

    It is not created here.

    Raises:
        StorageError: It would be in a home directory, and the user has none.
    """
    try:
        chosen = os.environ.get("TVMATTEND_CACHE")
        if chosen:
            return Path(chosen).expanduser().absolute()
        # The XDG base directory specification: a relative or empty value counts as not set.
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "tvmattend"
    except RuntimeError as error:  # no HOME, and a user whom /etc/passwd does not know
        raise StorageError(
            "there is no home directory to keep the cache in",
            "set TVMATTEND_CACHE to a directory that you can write to",
        ) from error


def require_room(place: Path, need: int, hint: str) -> None:
    """Refuse to start where the disk is as good as full.

    Args:
        place: A path on the file system; it need not exist yet.
        need: Bytes that must be free.
        hint: What to do instead.

    Raises:
        StorageError: Fewer are free.
    """
    absolute = place.absolute()
    there = next(path for path in (absolute, *absolute.parents) if path.exists())
    total, _, free = shutil.disk_usage(there)
    if total and free < need:  # /proc and its like have no room to count
        raise StorageError(
            f"no space left: the file system of {there} has {_megabytes(free)} free, "
            f"{_megabytes(need)} are needed",
            hint,
        )


def no_room(directory: Path, count: int) -> StorageError | None:
    """Write so many bytes to a directory and remove them again; the error if that fails.

    Unlike the number of free bytes, this also shows a quota, a limit and a directory that is gone.
    """
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as stream:
            for _ in range(0, count, _CHUNK):
                left = memoryview(bytes(_CHUNK))
                while left:
                    left = left[stream.write(left) :]
    except OSError as error:
        if error.errno in _FULL:
            told = f"no space left in `{directory}`"
            return StorageError(told, "free some space there, or set TMPDIR")
        known = storage_fault(error)
        told = f"cannot write to `{directory}`: {error.strerror or error}"
        return StorageError(told, known.hint if known is not None else "set TMPDIR")
    return None


def says_full(text: str) -> bool:
    """Whether a program's message is about a full disk, or a limit on files."""
    return _FULL_TEXT.search(text) is not None


def compiler_fault(file: str, text: str) -> StorageError | None:
    """Give the error of a compiler that had no room, by what it printed; else None."""
    if not says_full(text):
        return None
    return StorageError(
        f"no space left to compile {file}: {text.strip().splitlines()[-1]}",
        "free some space (also in $TMPDIR and in the cache, $TVMATTEND_CACHE)",
    )


def storage_fault(error: OSError) -> StorageError | None:
    """Give the error for a full disk, a limit on files or a lack of permission; else None.

    And for a current directory that was removed, where what asked for it names no file.
    """
    place = error.filename if error.filename is not None else _full_place(error)
    where = f"{place}: " if place is not None else ""
    message = f"{where}{error.strerror or error}"
    if error.errno in _FULL:
        hint = "free some space there (also in $TMPDIR and in the cache, $TVMATTEND_CACHE)"
    elif error.errno in _DENIED:
        hint = "choose a place that you may write to (--output, $TMPDIR, $TVMATTEND_CACHE)"
    elif error.errno in _LIMITS:
        hint = _LIMITS[error.errno]
    elif error.errno == errno.ENOENT and place is None and not _is_somewhere():
        message, hint = "the current directory was removed", "change to one that is there"
    else:
        return None
    return StorageError(message, hint)


def _is_somewhere() -> bool:
    """Whether the current directory is there."""
    try:
        os.getcwd()  # noqa: PTH109  (pathlib's keeps what it was told)
    except FileNotFoundError:
        return False
    return True


def _full_place(error: OSError) -> Path | None:
    """Of the places that we write to, one that is full, where an error does not name its own."""
    if error.errno not in _FULL:
        return None
    # Not even that can be asked for, or there is no home: then nothing is said.
    with suppress(OSError, StorageError):
        for place in (temporary_directory(), cache_root()):
            if place.is_dir() and shutil.disk_usage(place).free < _CHUNK:
                return place
    return None


def replace_text(path: Path, text: str) -> None:
    """Replace a file by a text, whole or not at all.

    Raises:
        OSError: It cannot be written; what was there still is, and nothing else.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def directories_for(place: Path) -> Iterator[None]:
    """Make a directory and its parents; those that are new and still empty at the end go again.

    Raises:
        OSError: One cannot be made.
    """
    absolute = place.absolute()
    new = [path for path in (absolute, *absolute.parents) if not path.exists()]
    try:
        absolute.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # not empty, or never made
            for path in new:
                path.rmdir()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
