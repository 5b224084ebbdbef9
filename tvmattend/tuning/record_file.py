# SPDX-License-Identifier: Apache-2.0
"""Files of records: read line by line, appended to so that a crash tears nothing.

The file is the journal of a run and the database of a build at once: a trial is reported when its
line is on the disk, and what is not in the file did not happen.

A file holds the trials of one network, target, origin and thread count:
`tuning_logs/<model>/<target>/<origin>/<N>-threads.jsonl`. Each line repeats all of that but the
network's name, so it may be copied elsewhere and still be understood. Only pruning rewrites.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tvmattend.cache import cache_root
from tvmattend.errors import RecordsError, StorageError
from tvmattend.storage import directories_for, require_room
from tvmattend.tuning.record import Origin, Record, parse_record

# A thousand records are 2 MB.
_ROOM_BYTES = 4 << 20


@dataclass(frozen=True)
class Fault:
    """A line that is not a record.

    Attributes:
        path: The file.
        line: Line number, from 1.
        reason: Why the line was skipped.
    """

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def read_records(path: Path) -> tuple[list[Record], list[Fault]]:
    """Read a file, skipping what is not a record; the file stays as it is.

    Returns:
        The records in file order, and one fault for each line that was skipped.

    Raises:
        RecordsError: The file cannot be read at all.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RecordsError(
            f"cannot read the tuning records `{path}`: {error.strerror}",
            "give a .jsonl file or a directory that holds some",
        ) from error
    records: list[Record] = []
    faults: list[Fault] = []
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            records.append(parse_record(raw.decode("utf-8")))
        except ValueError as error:  # UnicodeDecodeError is one
            faults.append(Fault(path, number, str(error)))
    return records, faults


@dataclass(frozen=True)
class RecordFile:
    """A file that records are appended to.

    Attributes:
        path: The file; it and its directories appear with the first record.
    """

    path: Path

    def append(self, record: Record) -> None:
        """Write one record and wait until the disk has it.

        One `write` of one whole line: an interrupt comes before or after it, not within. If the
        file ends in a torn line (the machine lost power), the record starts on a line of its own.

        Raises:
            StorageError: No space, no permission, or another fault of the file system.
        """
        new = [self.path, *(place for place in self.path.parents if not place.exists())]
        try:
            with directories_for(self.path.parent), _locked(self.path) as handle:
                if _append_line(handle, record.to_line().encode("utf-8")):
                    for place in new:
                        _settle_name(place)
        except OSError as error:
            raise StorageError(
                f"cannot write the tuning record to `{self.path}`: {error.strerror}",
                "free some space or give another directory with --output; earlier records are kept",
            ) from error

    def repair(self) -> str:
        """Make the last line whole again, after a power cut or a full disk.

        Returns:
            What was done, for a person; empty if the file was sound.

        Raises:
            StorageError: The file cannot be written.
        """
        if not self.path.is_file():
            return ""
        try:
            with _locked(self.path) as handle:
                return _mend(handle, self.path)
        except OSError as error:
            raise StorageError(
                f"cannot repair the tuning records `{self.path}`: {error.strerror}",
                "free some space, or give another directory with --output",
            ) from error

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs away: two at once would try the same points, and miss the total.

        The kernel gives the claim back when the process dies, however it dies.

        Raises:
            RecordsError: Another run has the file.
            StorageError: The lock, which lies in the cache, cannot be made.
        """
        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        lock = cache_root() / "locks" / f"{name}.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stream = lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"cannot write the lock `{lock}`: {error.strerror}",
                "free some space, or set TVMATTEND_CACHE to a directory that can be written",
            ) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                raise RecordsError(
                    f"another tuning run (process {stream.read().strip() or 'unknown'}) is writing "
                    f"to `{self.path}`",
                    "wait for it or stop it; for another experiment give another --output",
                ) from error
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            yield

    def check_writable(self) -> None:
        """Find out before the work whether records can be kept; nothing is left behind.

        Raises:
            StorageError: Hardly any space, no permission, or another fault of the file system.
        """
        hint = "free some space there, or give another directory with --output"
        require_room(self.path, _ROOM_BYTES, hint)
        try:
            with directories_for(self.path.parent), _locked(self.path):
                pass
        except OSError as error:
            raise StorageError(
                f"tuning records cannot be written to `{self.path}`: {error.strerror}", hint
            ) from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open for appending; what is still empty at the end goes again.

    Two runs may share a file; without the lock one could see the other's torn end.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink == 0:  # the other run's empty file, gone while we waited
                continue
            try:
                yield handle
            finally:
                if os.fstat(handle).st_size == 0:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def _append_line(handle: int, line: bytes) -> bool:
    """Append, and say whether the file was empty before."""
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        sent = 0
        while sent < len(line):
            sent += os.write(handle, line[sent:])
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)  # a full disk takes part of a line; take it back
        raise
    return size == 0


def _mend(handle: int, path: Path) -> str:
    content = path.read_bytes()
    tail = content[content.rfind(b"\n") + 1 :]
    if not tail:
        return ""
    try:
        json.loads(tail)
    except (ValueError, RecursionError):
        os.ftruncate(handle, len(content) - len(tail))
        done = (
            f"the last line of `{path}` was torn (a trial was being written when the machine or "
            f"the disk stopped): its {len(tail)} bytes are removed"
        )
    else:
        os.write(handle, b"\n")
        done = f"the last line of `{path}` had lost its end: mended"
    os.fsync(handle)
    return done


def _settle_name(place: Path) -> None:
    """Wait until the disk knows a new file or directory by its name."""
    directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def record_path(directory: Path, origin: Origin, threads: int) -> Path:
    """Where the records of one origin and thread count lie under `<model>/<target>`."""
    return directory / origin / f"{threads}-threads.jsonl"


def prune(records: Sequence[Record], keep: int) -> list[Record]:
    """Keep the best of each kernel, so that files that ship stay small.

    Args:
        records: Records of any kernels, origins and thread counts.
        keep: How many to keep of each kernel, origin and thread count. Failures go, but for those
            in quarantine: their kernels must not be sent again.

    Returns:
        The survivors in their old order, each point at most once.
    """
    groups: dict[tuple[str, str, int], dict[tuple[tuple[str, int], ...], Record]] = {}
    for record in records:
        if not record.ok:
            continue
        group = groups.setdefault((record.key, record.origin, record.threads), {})
        point = tuple(sorted(record.point.items()))
        if point not in group or record.seconds < group[point].seconds:
            group[point] = record
    kept = {id(record) for record in records if record.quarantined} | {
        id(record)
        for group in groups.values()
        for record in sorted(group.values(), key=lambda record: record.seconds)[:keep]
    }
    return [record for record in records if id(record) in kept]


def prune_file(path: Path, keep: int) -> tuple[int, int]:
    """Prune a file in place, atomically.

    Returns:
        Lines before and records after.

    Raises:
        RecordsError: The file cannot be read, or holds lines that are not records (they would be
            lost).
        StorageError: The file cannot be written.
    """
    records, faults = read_records(path)
    if faults:
        raise RecordsError(
            f"{faults[0]}: pruning would lose {len(faults)} unreadable lines",
            "remove those lines first",
        )
    kept = prune(records, keep)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("w", encoding="utf-8") as handle:
            handle.writelines(record.to_line() for record in kept)
            handle.flush()
            os.fsync(handle.fileno())
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write `{path}`: {error.strerror}", "free some space; the file is unchanged"
        ) from error
    return len(records), len(kept)
