# SPDX-License-Identifier: Apache-2.0
"""Failures that are this machine's own, and no verdict on a candidate: they end the run.

What a builder or QEMU failed at is done once more before it counts, as is what was killed while a
kernel ran here: that may have been somebody else. What a kernel that runs here fails at by itself
counts at once. A compiler that a kernel crashes dies of its own signal (SIGSEGV, SIGABRT), or LLVM
ends the process with exit code 1, which it also does when it cannot write: so after each failure
this machine shows that it still can.
"""

import logging
import re
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from tvmattend.errors import StorageError, TuningError, TvmattendError
from tvmattend.storage import no_room, says_full, storage_fault
from tvmattend.tuning.pools import DiedError
from tvmattend.tuning.record import one_line

_LOG = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# More than a kernel, its object, its library and its tensors take.
_ROOM_BYTES = 8 << 20
# No kernel makes a compiler send itself these: they are from outside, or of Linux's OOM killer.
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
# SIGKILL and SIGTERM; Zig's wrapper, which is Python, passes them on modulo 256.
_LINKER_KILLED = re.compile(r"exit code (?:-9|-15|247|241)\b")
_REMEDY = "; what was measured is recorded: repeat the command to go on"


def settled(begin: Callable[[], Future[_Result]], begun: Future[_Result], place: Path) -> _Result:
    """Wait for what a worker does for a candidate; a failure is looked at twice.

    Args:
        begin: Begins it once more.
        begun: It, under way.
        place: Directory that it writes to.

    Raises:
        StorageError: This machine's disk or its limits are at fault.
        TuningError: The workers are killed.
        TimeoutError: It took too long.
        Exception: The candidate's failure, of any other class.
    """
    try:
        return begun.result()
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001  (whatever it is, it may be over)
        _blame_this_machine(error, own_fault(error, place))
        _LOG.info("failed, and is done once more: %s", one_line(str(error)))
    try:
        return begin().result()
    except TimeoutError:
        raise
    except Exception as error:
        _blame_this_machine(error, own_fault(error, place) or _killed(error))
        raise


def _blame_this_machine(error: Exception, fault: TvmattendError | None) -> None:
    if fault is not None:
        raise fault from error


def require_place(place: Path) -> None:
    """See that a directory takes kernels.

    Raises:
        StorageError: It does not.
    """
    fault = own_fault("", place)
    if fault is not None:
        raise fault


def own_fault(error: BaseException | str, place: Path) -> StorageError | None:
    """The error to end the run with, if a failure is about this machine's disk or its limits.

    Args:
        error: The failure, or its text.
        place: Directory that was written to.
    """
    short = no_room(place, _ROOM_BYTES)
    if short is not None:
        # The run's own directory there goes with the run; the user knows the one that it is in.
        told = str(short).replace(f"`{place}`", f"`{place.parent}`")
        return StorageError(told, short.hint + _REMEDY)
    known = storage_fault(error) if isinstance(error, OSError) else None
    if known is not None:
        return StorageError(str(known), known.hint + _REMEDY)
    # What was raised in a worker has its traceback for a text, and nothing else.
    if isinstance(error, StorageError) or says_full(str(error)):
        told = one_line(str(error)).removeprefix(f"{StorageError.__module__}.StorageError: ")
        hint = "free some space (also in $TMPDIR and in ~/.cache), or raise the limits on files"
        return StorageError(told, hint + _REMEDY)
    return None


def _killed(error: BaseException) -> TvmattendError | None:
    if isinstance(error, DiedError):
        outside = error.code is not None and -error.code in _FROM_OUTSIDE
        return killed_error(str(error)) if outside else None
    linker = _LINKER_KILLED.search(str(error))
    return killed_error(f"the linker: {linker[0]}") if linker is not None else None


def killed_error(what: str) -> TuningError:
    """The error for worker processes that somebody, or a lack of memory, kills."""
    return TuningError(
        f"worker processes of this run are killed ({what}, twice)",
        "this machine may be short of memory: see Linux's log" + _REMEDY,
    )
