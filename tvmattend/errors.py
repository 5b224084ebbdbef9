# SPDX-License-Identifier: Apache-2.0
"""One class for each failure that a user can cause: what happened, what to do, and an exit code.

Code raises these (`compiling` makes one of what TVM raises); `cli/main.py` alone prints them, as
`error: <message>` and `hint: <hint>`.
The runtime that ships inside a bundle cannot import this file; its errors carry the same three
attributes (`exit_code`, `hint`, `str(error)`) and are printed the same way.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvmattend.interrupts import kept

# Not for a terminal: what moves its cursor, and halves of characters, which cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Make one line of a text that quotes what a user, or a file, gave."""
    line = re.sub("[\t\n\v\f\r]+", " ", text)
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", line)


class TvmattendError(Exception):
    """A failure with a remedy.

    Args:
        message: One line: what happened, and where.
        hint: One line: what to do about it; without it the kind's own remedy.
    """

    exit_code = 1
    remedy = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(printable(message))
        self.hint = printable(hint or self.remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Come out of a worker process as it is, whatever arguments a subclass is made with."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class TargetError(TvmattendError):
    """A target that cannot be understood or that TVM cannot compile for."""

    exit_code = 3


class ModelError(TvmattendError):
    """A model that is unknown, cannot be loaded, or cannot be exported."""

    exit_code = 4


class UnsupportedOperatorError(TvmattendError):
    """An operator that the importer does not know."""

    exit_code = 5


class WeightsError(TvmattendError):
    """Weights that cannot be read or that belong to another network."""

    exit_code = 6


class BoardUnreachableError(TvmattendError):
    """No RPC server answers at the address given, or it stopped answering."""

    exit_code = 7


class NoFreeBoardError(TvmattendError):
    """The tracker answers, but it has no free board of that key."""

    exit_code = 8


class BoardMismatchError(TvmattendError):
    """The board is of another architecture than the target."""

    exit_code = 9


class ToolMissingError(TvmattendError):
    """A program, package or download that the command needs is not there."""

    exit_code = 10


class RecordsError(TvmattendError):
    """Tuning records that cannot be read or written at all."""

    exit_code = 11


class OutputExistsError(TvmattendError):
    """The output is there already and `--force` was not given."""

    exit_code = 12


class StorageError(TvmattendError):
    """No space left, no permission, or another fault of the file system."""

    exit_code = 13


class BoardFullError(StorageError):
    """A board that has no room for a file."""


class BundleError(TvmattendError):
    """A bundle that is missing, damaged, or of a newer schema."""

    exit_code = 14


class BundleMismatchError(TvmattendError):
    """A sound bundle that was built for another machine or another runtime."""

    exit_code = 15


class ValidationError(TvmattendError):
    """Outputs that differ from the reference by more than the tolerance."""

    exit_code = 16


class InputError(TvmattendError):
    """An input of the wrong shape, dtype, layout or file type."""

    exit_code = 17


class CompileError(TvmattendError):
    """Lowering, code generation or linking failed."""

    exit_code = 18
    remedy = "this is no fault of yours: report it with the network; `--format vm` may build it"


@contextmanager
def compiling(what: str, hint: str) -> Iterator[None]:
    """Tell what TVM refuses to compile by the last line of its message ahead of any list there.

    The lines ahead of it are a trace.

    Args:
        what: Is compiled, and for which target.
        hint: What to do about it.

    Raises:
        CompileError: TVM raised something.
        KeyboardInterrupt: Ctrl-C, whatever TVM made of it.
    """
    try:
        with kept():
            yield
    # TVM's own errors are RuntimeErrors, and what its C++ raises under the names of Python's.
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = [line for line in lines if not line.startswith("- ")] or lines
        reason = said[-1] if said else type(error).__name__
        raise CompileError(f"TVM could not compile {what}: {reason}", hint) from error


class TuningError(TvmattendError):
    """A tuning run that could not go on, or in which no trial succeeded."""

    exit_code = 19


class PortError(TvmattendError):
    """The port to serve on is taken, or may not be used."""

    exit_code = 20


class BenchmarkError(TvmattendError):
    """A runtime to compare with is unknown, or nothing could be timed."""

    exit_code = 21
    remedy = "leave that runtime out of --against, or run again with --debug"


class SignatureError(TvmattendError):
    """A signature that is missing or does not fit, or a key that cannot be read."""

    exit_code = 23


class FusionError(TvmattendError):
    """`--strict-fusion` was given and a DC-AC block was not fused."""

    exit_code = 22
