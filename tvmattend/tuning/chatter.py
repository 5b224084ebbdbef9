# SPDX-License-Identifier: Apache-2.0
"""What TVM, its worker processes and torch say, into a file instead of onto the screen.

TVM logs from C++ to file descriptor 2 and worker processes inherit it, so replacing `sys.stderr`
would not do: the descriptors themselves point to the log for a while.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tvmattend.errors import StorageError


def screen() -> TextIO:
    """A text stream to what is standard error now, which stays there while `chatter_to` is on.

    The caller closes it. Where `sys.stderr` is not the process's own (a test, a notebook), it is
    itself what a reader sees, and it is returned.
    """
    try:
        own = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        own = False
    if not own:
        return sys.stderr
    return os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="replace", buffering=1)


@contextmanager
def chatter_to(log: Path | None) -> Iterator[None]:
    """Send file descriptors 1 and 2 of this process and its future children to a file.

    Args:
        log: Appended to; its directory is made. None leaves everything as it is.

    Raises:
        StorageError: The file cannot be opened.
    """
    if log is None:
        yield
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise StorageError(
            f"cannot write the log `{log}`: {error.strerror}", "give another file with --log"
        ) from error
    kept = [os.dup(1), os.dup(2)]
    try:
        _flush()
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        yield
    finally:
        _flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for each in (*kept, handle):
            os.close(each)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed or replaced: nothing to flush
            stream.flush()
