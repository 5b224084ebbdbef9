# SPDX-License-Identifier: Apache-2.0
"""The claim on a file of records: one run, or one pruning, at a time has it.

A lock file lies beside the records, wherever they were reached from: another user, another cache
directory and a symbolic link come to the same one. The kernel gives the lock back when its process
dies, however it dies; the empty file that is left then is nobody's, and goes with the next claim.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvmattend.errors import RecordsError
from tvmattend.storage import directories_for


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Keep others away from a file of records, which need not exist.

    Raises:
        RecordsError: Another process has the file.
        OSError: The lock file cannot be made.
    """
    real = path.resolve()
    lock = real.with_name(f".{real.name}.lock")
    with directories_for(real.parent):
        handle = _locked(lock, path)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # before it is free: who opened it sees that it is gone
            os.close(handle)


def _locked(lock: Path, path: Path) -> int:
    """Open and lock the file that has this name; give its descriptor."""
    while True:
        handle = _opened(lock)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise RecordsError(
                f"another tuning run (process {owner or 'unknown'}) has `{path}`",
                "wait for it or stop it; for another experiment give another --output",
            ) from error
        if os.fstat(handle).st_nlink:
            with contextlib.suppress(OSError):  # another user's, or a full disk: only for a reader
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
            return handle
        os.close(handle)  # its owner was just done with it


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:  # another user's: it can be locked all the same
        return os.open(lock, os.O_RDONLY)
