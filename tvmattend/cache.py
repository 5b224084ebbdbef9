# SPDX-License-Identifier: Apache-2.0
"""The one place outside a project where tvmattend keeps things: downloads and what is prepared."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvmattend.errors import StorageError
from tvmattend.storage import cache_root, require_room

Progress = Callable[[str], None]

_STAMP = "stamp.json"
_HINT = "free some space, or set TVMATTEND_CACHE to a directory that you can write to"


def prepared(
    name: str,
    stamp: Mapping[str, Any],
    build: Callable[[Path], None],
    progress: Progress,
    need: int = 0,
) -> Path:
    """Give the directory `<cache>/<name>-<hash of the stamp>`, building it if it is not there.

    It is built beside its place and renamed: complete or absent. Of two processes that want the
    same, one builds and the other waits.

    Args:
        name: What it is.
        stamp: All that the content depends on; a change means another directory.
        build: Fills the directory that it is given.
        progress: Told, in a line, about waiting.
        need: Bytes that `build` takes at its fullest, downloads included.

    Raises:
        StorageError: No room, or no permission.
    """
    digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
    place = cache_root() / f"{name}-{digest}"
    if (place / _STAMP).is_file():
        return place
    require_room(place, need, _HINT)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_name(f"{name}.lock"), progress):
            if not (place / _STAMP).is_file():
                _build(place, name, stamp, build)
    except OSError as error:
        raise StorageError(
            f"{place} cannot be prepared: {error.strerror or error}", _HINT
        ) from error
    return place


def zig_environment() -> dict[str, str]:
    """Give the environment to run Zig in: its cache is here, or in `$ZIG_GLOBAL_CACHE_DIR`.

    Its own default is in a home directory, which services and containers may not have.

    Raises:
        StorageError: The directory cannot be made.
    """
    environment = dict(os.environ)
    if not environment.get("ZIG_GLOBAL_CACHE_DIR"):
        place = cache_root() / "zig"
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{place} cannot be made: {error.strerror or error}", _HINT
            ) from error
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(place)
    return environment


def _build(place: Path, name: str, stamp: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    prefix = f".partial-{name}-"
    for stale in place.parent.glob(f"{prefix}*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(stale)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=place.parent))
    try:
        build(partial)
        text = json.dumps(stamp, indent=1, sort_keys=True) + "\n"
        (partial / _STAMP).write_text(text, encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes it private
        if place.exists():  # without a stamp: half deleted by hand
            shutil.rmtree(place)
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the first error is the one to see
        raise


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock file, which the kernel releases if the process dies."""
    with path.open("w", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is preparing {path.stem}; waiting")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
