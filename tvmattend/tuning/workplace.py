# SPDX-License-Identifier: Apache-2.0
"""Where a run puts the kernels that it builds; what a run that was killed left there goes."""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

_NAME = re.compile(r"tvmattend-tune-(\d+)-\w+")


def open_workplace() -> "tempfile.TemporaryDirectory[str]":
    """Make a directory that names this process, after those of dead ones are removed."""
    for place in Path(tempfile.gettempdir()).glob("tvmattend-tune-*"):
        named = _NAME.fullmatch(place.name)
        if named is not None and not _alive(int(named[1])):
            # Another run may be at it too, or it is another user's: then it is not for us.
            shutil.rmtree(place, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"tvmattend-tune-{os.getpid()}-")


def _alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # somebody else's, hence alive
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
