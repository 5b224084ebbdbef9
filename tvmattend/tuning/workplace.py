# SPDX-License-Identifier: Apache-2.0
"""Where a run puts the kernels that it builds; what a run that was killed left there goes.

A lock tells which is which, and ends with its process. A process id would not: containers that
share a directory have each their own.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "tvmattend-workplace-"


class _Workplace(tempfile.TemporaryDirectory[str]):
    """A directory that can be locked for as long as it stands."""

    _lock = -1

    def hold(self) -> bool:
        """Lock it; False if another run removed it first."""
        with contextlib.suppress(FileNotFoundError):
            self._lock = os.open(self.name, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return Path(self.name).is_dir()

    def cleanup(self) -> None:
        """Remove it, then the lock."""
        super().cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_workplace() -> "tempfile.TemporaryDirectory[str]":
    """Make a directory that is locked, after those that nobody holds are removed."""
    for place in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Held, another user's, or another run is at it too: then it is not for us.
        with contextlib.suppress(OSError):
            _remove_unless_held(place)
    while not (made := _Workplace(prefix=_PREFIX)).hold():
        made.cleanup()
    return made


def _remove_unless_held(place: Path) -> None:
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place)
    finally:
        os.close(lock)
