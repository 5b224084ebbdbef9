# SPDX-License-Identifier: Apache-2.0
"""What the plugin writes down of a program: blocks with counts, accesses with fates, samples."""

import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tvmattend.errors import ToolMissingError

# Same order as `enum event` of a72_caches.h.
EVENTS = (
    "accesses", "l2_stream", "l2_lone", "dram_stream", "dram_lone", "store_l2", "store_dram",
    "writeback_l2", "writeback_dram", "split", "shared",
)  # fmt: skip


# Threads with a record of their own; all others share the next one. As in a72_caches.h.
THREADS = 8


class Mapped(NamedTuple):
    """A file in the guest's memory: guest addresses `start` to `end` are the file's `offset` on."""

    start: int
    end: int
    offset: int
    path: str


@dataclass
class Block:
    """A translated block.

    Attributes:
        address: Where it is, in the guest.
        code: Its instructions, four bytes each, little-endian.
        counts: Executions, by thread.
        events: Totals over its instructions, by thread, in the order of `EVENTS`.
    """

    address: int
    code: bytes
    counts: dict[int, int]
    events: dict[int, list[int]] = field(default_factory=dict)

    @property
    def words(self) -> tuple[int, ...]:
        """The instructions' encodings."""
        return struct.unpack(f"<{len(self.code) // 4}I", self.code)


@dataclass(frozen=True)
class Trace:
    """One traced stretch of a program.

    Attributes:
        blocks: By the plugin's number.
        samples: Windows of the executed sequence, as the plugin writes them.
        maps: Files in the guest's memory.
        markers: How often the program marked a phase; 0 if it does not.
        caches: Whether data accesses went through the caches.
        crowd: How many threads there were, where those beyond `THREADS` share a record and an L1
            and have no samples; else 0.
        children: Processes that the program started meanwhile; nothing of theirs is counted.
    """

    blocks: Mapping[int, Block]
    samples: bytes
    maps: tuple[Mapped, ...]
    markers: int
    caches: bool
    crowd: int = 0
    children: int = 0

    @property
    def threads(self) -> tuple[int, ...]:
        """Threads that executed something, by number; 0 is the first. No record of several."""
        found = {thread for block in self.blocks.values() for thread in block.counts}
        return tuple(sorted(thread for thread in found if thread < THREADS))

    def instructions(self, thread: int | None = None) -> int:
        """Executed instructions, of one thread or of all."""
        return sum(
            len(block.code) // 4 * count
            for block in self.blocks.values()
            for number, count in block.counts.items()
            if thread is None or number == thread
        )

    def events(self) -> dict[str, int]:
        """Totals of all threads, by name."""
        totals = [0] * len(EVENTS)
        for block in self.blocks.values():
            for counts in block.events.values():
                totals = [a + b for a, b in zip(totals, counts, strict=True)]
        return dict(zip(EVENTS, totals, strict=True))

    def thinned(self, size: int) -> "Trace":
        """Give the trace with about `size` bytes of its samples, windows drawn by lot (seeded)."""
        share = size / max(1, len(self.samples))
        draw = random.Random(size)  # noqa: S311  (no secret)
        kept, at = [], 0
        while at + 12 <= len(self.samples):
            (words,) = struct.unpack_from("<I", self.samples, at + 8)
            end = at + 12 + 4 * words
            if draw.random() < share:
                kept.append(self.samples[at:end])
            at = end
        return replace(self, samples=b"".join(kept))

    def files(self) -> Iterator[str]:
        """Paths of the mapped files, each once."""
        yield from dict.fromkeys(mapped.path for mapped in self.maps)


def read_trace(path: Path, caches: bool = True) -> Trace:
    """Read what the plugin wrote.

    Raises:
        ToolMissingError: It is not complete: the program or the emulator was killed.
    """
    blocks: dict[int, Block] = {}
    maps: list[Mapped] = []
    base = markers = crowd = children = 0
    complete = False
    current = Block(0, b"", {})
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            kind, _, rest = line.partition(" ")
            if kind == "block":
                number, address, code, *counts = rest.split()
                pairs = (pair.split(":") for pair in counts)
                current = Block(
                    int(address, 16), bytes.fromhex(code), {int(t): int(n) for t, n in pairs}
                )
                blocks[int(number)] = current
            elif kind == "site":
                _, thread, *values = (int(word) for word in rest.split())
                totals = current.events.setdefault(thread, [0] * len(EVENTS))
                for place, value in enumerate(values):
                    totals[place] += value
            elif kind == "map":
                maps.extend(_mapped(rest, base))
            elif kind == "base":
                base = int(rest, 16)
            elif kind == "crowd":
                crowd = int(rest)
            elif kind == "children":
                children = int(rest)
            elif kind == "markers":
                markers = int(rest)
            complete = line == "end\n"
    if not complete:
        raise ToolMissingError(f"{path.name} ends early: the emulator was stopped", "run it again")
    samples = path.with_name(f"{path.name}.samples")
    return Trace(blocks, samples.read_bytes() if samples.is_file() else b"", tuple(maps), markers,
                 caches, crowd, children)  # fmt: skip


def _mapped(text: str, base: int) -> Iterator[Mapped]:
    """Read a line of /proc/PID/maps; QEMU's own files are below the guest's base or harmless."""
    span, _, offset, _, _, path = text.rstrip("\n").split(None, 5)
    start, end = (int(word, 16) - base for word in span.split("-"))
    if end > 0:
        yield Mapped(start, end, int(offset, 16), path)
