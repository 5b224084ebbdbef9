# SPDX-License-Identifier: Apache-2.0
"""The one place outside a project where tvmattend keeps things: downloads and prepared boards."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvmattend.errors import StorageError


def cache_root() -> Path:
    """Give the cache directory: `$TVMATTEND_CACHE`, else `tvmattend` in the user's cache.

    It is not created here, so that asking for it cannot fail. A relative path is taken from the
    current directory.
    """
    chosen = os.environ.get("TVMATTEND_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    # The XDG base directory specification: a relative or empty value counts as not set.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "tvmattend"


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Hold the lock of something in the cache while it is being prepared.

    The lock is a file beside `path` and is released by the kernel if the process dies.

    Args:
        path: What is being prepared; its parent directory is created.

    Raises:
        StorageError: The directory or the lock cannot be made.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w", encoding="ascii")
    except OSError as error:
        raise StorageError(
            f"the cache at {path.parent} cannot be used: {error.strerror}",
            "set TVMATTEND_CACHE to a directory that you can write to",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield path
