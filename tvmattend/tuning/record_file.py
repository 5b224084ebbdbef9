# SPDX-License-Identifier: Apache-2.0
"""Files of records: read line by line, appended to so that a crash tears nothing.

The file is the journal of a run and the database of a build at once: a trial is reported when its
line is on the disk, and what is not in the file did not happen.

A file holds the trials of one network, target, origin and thread count:
`tuning_logs/<model>/<target>/<origin>/<N>-threads.jsonl`. Each line repeats all of that but the
network's name, so it may be copied elsewhere and still be understood. Only pruning rewrites.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tvmattend.errors import RecordsError, StorageError
from tvmattend.storage import directories_for, require_room, storage_fault
from tvmattend.tuning.claim import claim
from tvmattend.tuning.record import Origin, Record, parse_record

# A thousand records are 2 MB.
_ROOM_BYTES = 4 << 20
_HINT = "free some space there, or give another directory with --output"


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
            StorageError: No space, or no permission.
            RecordsError: The file cannot be written for another reason.
        """
        new = [self.path, *(place for place in self.path.parents if not place.exists())]
        try:
            with directories_for(self.path.parent), _locked(self.path) as handle:
                if _append_line(handle, record.to_line().encode("utf-8")):
                    for place in new:
                        _settle_name(place)
        except OSError as error:
            raise _refused(f"cannot write the tuning record to `{self.path}`", error) from error

    def repair(self) -> str:
        """Make the last line whole again, after a power cut or a full disk.

        Returns:
            What was done, for a person; empty if the file was sound.

        Raises:
            StorageError: No space, or no permission.
            RecordsError: The file cannot be written for another reason.
        """
        if not self.path.is_file():
            return ""
        try:
            with _locked(self.path) as handle:
                return _mend(handle, self.path)
        except OSError as error:
            raise _refused(f"cannot repair the tuning records `{self.path}`", error) from error

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs away: two at once would try the same points, and miss the total.

        The kernel gives the claim back when the process dies, however it dies.

        Raises:
            RecordsError: Another run has the file, or it is being pruned.
            StorageError: There is no space for the lock beside it, or no permission.
        """
        with ExitStack() as held:
            try:
                held.enter_context(claim(self.path))
            except OSError as error:
                raise _refused(f"cannot claim the tuning records `{self.path}`", error) from error
            yield

    def check_writable(self) -> None:
        """Find out before the work whether records can be kept; nothing is left behind.

        Raises:
            StorageError: Hardly any space, or no permission.
            RecordsError: There cannot be such a file.
        """
        require_room(self.path, _ROOM_BYTES, _HINT)
        try:
            with directories_for(self.path.parent), _locked(self.path):
                pass
        except OSError as error:
            raise _refused(f"tuning records cannot be written to `{self.path}`", error) from error


def _refused(what: str, error: OSError) -> StorageError | RecordsError:
    """The error for a file that cannot be written: the disk's, or there can be no such file."""
    if isinstance(error, FileExistsError):  # a file in the place of a directory
        error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    message = f"{what}: {error.strerror or error}"
    known = storage_fault(error)
    if known is None and isinstance(error, IsADirectoryError):
        return RecordsError(message, "move that directory away, or give another --output")
    if known is None and isinstance(error, NotADirectoryError):
        return RecordsError(message, "give a directory with --output; a part of this is a file")
    if known is None:
        return RecordsError(message, "give another directory with --output")
    if error.errno == errno.ENOSPC:
        return StorageError(message, f"{_HINT}; earlier records are kept")
    return StorageError(message, known.hint)


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
        The survivors in their old order; of those that were timed, each point at most once.
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


def prune_files(paths: Sequence[Path], keep: int) -> list[tuple[int, int]]:
    """Prune files in place, each atomically; none while a run has one of them.

    Returns:
        Lines before and records after, of each.

    Raises:
        RecordsError: A run has one, it cannot be read, or holds lines that are not records (they
            would be lost).
        StorageError: One cannot be written.
    """
    with ExitStack() as claims:
        for path in paths:
            claims.enter_context(RecordFile(path).claimed())
        return [_prune_file(path, keep) for path in paths]


def _prune_file(path: Path, keep: int) -> tuple[int, int]:
    records, faults = read_records(path)
    if faults:
        raise RecordsError(
            f"{faults[0]}: pruning would lose {len(faults)} unreadable lines",
            "remove those lines first",
        )
    kept = prune(records, keep)
    real = path.resolve()  # a link stays one
    staged = real.with_name(f".{real.name}.{os.getpid()}")
    try:
        with staged.open("w", encoding="utf-8") as handle:
            handle.writelines(record.to_line() for record in kept)
            handle.flush()
            os.fsync(handle.fileno())
        shutil.copymode(real, staged)
        staged.replace(real)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write `{path}`: {error.strerror}", "free some space; the file is unchanged"
        ) from error
    return len(records), len(kept)
