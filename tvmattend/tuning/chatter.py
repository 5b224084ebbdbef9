# SPDX-License-Identifier: Apache-2.0
"""What TVM, its worker processes and torch say, into a file instead of onto the screen.

TVM logs from C++ to file descriptor 2 and worker processes inherit it, so replacing `sys.stderr`
would not do: the descriptors themselves point to the log for a while.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tvmattend.errors import StorageError

_STDOUT, _STDERR = 1, 2
_LOGGERS = ("tvmattend", "tvm.s_tir.meta_schedule")


@contextmanager
def screen() -> Iterator[TextIO]:
    """A text stream to what is standard error now, which stays there while `chatter_to` is on.

    Where `sys.stderr` is not the process's own (a test, a notebook), it is what a reader sees.
    """
    try:
        own = sys.stderr.fileno() == _STDERR
    except (OSError, ValueError, AttributeError):
        own = False
    if not own:
        yield sys.stderr
        return
    encoding = sys.stderr.encoding
    with os.fdopen(os.dup(_STDERR), "w", encoding=encoding, errors="replace", buffering=1) as copy:
        yield copy


@contextmanager
def chatter_to(log: Path | None) -> Iterator[None]:
    """Send file descriptors 1 and 2 of this process and its future children to a file.

    Args:
        log: Appended to; its directory is made. None leaves everything as it is.

    Raises:
        StorageError: The file cannot be opened, or takes nothing.
    """
    if log is None:
        yield
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, b"\n")  # sets runs apart; a full disk shows now, not in torch
    except OSError as error:
        raise StorageError(
            f"cannot write the log `{log}`: {error.strerror}", "give another file with --log"
        ) from error
    kept = [os.dup(_STDOUT), os.dup(_STDERR)]
    messages = logging.StreamHandler(os.fdopen(os.dup(handle), "w", encoding="utf-8"))
    messages.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        _flush()
        os.dup2(handle, _STDOUT)
        os.dup2(handle, _STDERR)
        for logger in loggers:
            logger.addHandler(messages)
            logger.setLevel(logging.INFO)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(messages)
            logger.setLevel(level)
        with suppress(OSError):  # a full disk keeps no messages; that is not what the run was for
            messages.stream.close()
        _flush()
        os.dup2(kept[0], _STDOUT)
        os.dup2(kept[1], _STDERR)
        for each in (*kept, handle):
            os.close(each)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed or replaced: nothing to flush
            stream.flush()
