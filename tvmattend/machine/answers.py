# SPDX-License-Identifier: Apache-2.0
"""What llvm-mca has said, on disk: asking it again takes seconds of each estimate.

One file for a version of LLVM, a core, and a way of asking. Each line is what one process learned
at once: a checksum, and JSON of shapes with their numbers. Lines are appended under a lock; one
that is torn, by a full disk or a power cut, fails its checksum and is asked for again.
"""

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# An immediate operand makes a shape of its own, so there is no end of them. AttendNeXt has 300, of
# 60 bytes each; a file that has grown so large is begun anew.
_MOST_BYTES = 4 << 20


class Answer(NamedTuple):
    """LLVM's numbers for one shape of instruction.

    Attributes:
        slots: Places of the three that are dispatched in a cycle.
        latency: Cycles from issue to result.
        ports: Cycles on each pipeline.
    """

    slots: int
    latency: int
    ports: tuple[tuple[str, int], ...]


class Answers:
    """The answers of this and of other processes, in one file.

    Args:
        path: Of the file; it need not exist, nor its directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0  # bytes, up to the end of a line

    def news(self) -> dict[str, Answer]:
        """Give what was added since the last call; nothing if the file cannot be read."""
        found: dict[str, Answer] = {}
        with contextlib.suppress(OSError), self._path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < self._read:  # begun anew
                self._read = 0
            stream.seek(self._read)
            whole, end, _ = stream.read().rpartition(b"\n")  # another process may be at the last
            self._read += len(whole) + len(end)
            for line in whole.split(b"\n"):
                found.update(_parse(line))
        return found

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Append answers.

        What cannot be kept, for want of room or permission, is asked for again: no reason to fail.
        """
        if not answers:
            return
        body = json.dumps(answers, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b", buffering=0) as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                size = stream.seek(0, os.SEEK_END)
                if size + len(line) > _MOST_BYTES:
                    stream.truncate(0)
                elif size:
                    stream.seek(-1, os.SEEK_END)
                    if stream.read(1) != b"\n":  # torn: it must not spoil this line too
                        line = b"\n" + line
                stream.write(line)


def _parse(line: bytes) -> dict[str, Answer]:
    """Read a line; nothing if it is damaged."""
    sum_, _, body = line.partition(b" ")
    if sum_ != b"%08x" % zlib.crc32(body):
        return {}
    return {
        shape: Answer(slots, latency, tuple((port, cycles) for port, cycles in ports))
        for shape, (slots, latency, ports) in json.loads(body).items()
    }
