# SPDX-License-Identifier: Apache-2.0
"""The IR after every phase, as numbered files: `--dump-ir`."""

import re
from pathlib import Path
from typing import Any

from tvmattend.errors import StorageError
from tvmattend.storage import replace_text

_FILE = re.compile(r"\d\d-[a-z]+\.py")
_ELSEWHERE = "choose another --dump-ir"


class Dump:
    """A directory that holds the phases of one run, and nothing else.

    What an earlier dump left there is removed: phases of two runs would stand beside each other.

    Args:
        directory: Made, with its parents, if it is not there.

    Raises:
        StorageError: It holds other files, or cannot be made or written to.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            there = sorted(directory.iterdir())
            foreign = [path.name for path in there if not _FILE.fullmatch(path.name)]
            if foreign:
                raise StorageError(
                    f"{directory} is for a dump, and holds other files: `{foreign[0]}`", _ELSEWHERE
                )
            for path in there:
                path.unlink()
            replace_text(directory / ".dump", "")
            (directory / ".dump").unlink()
        except OSError as error:
            raise _fault(directory, error) from error

    def write(self, phase: str, mod: Any) -> None:
        """Write a module as TVMScript, without the weights, to `<number>-<phase>.py`.

        Raises:
            StorageError: It cannot be written; no half of it is left.
        """
        path = self._directory / f"{self._count:02d}-{phase}.py"
        self._count += 1
        try:
            replace_text(path, mod.script(show_meta=False))
        except OSError as error:
            raise _fault(path, error) from error


def _fault(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written: {error.strerror or error}", _ELSEWHERE)
