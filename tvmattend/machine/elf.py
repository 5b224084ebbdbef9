# SPDX-License-Identifier: Apache-2.0
"""Functions of an aarch64 ELF file, and what they call: enough to name executed code.

Kernels of a compiled network are split: an exported entry checks its arguments, and one or more
local functions, which no symbol names, do the work. A local function belongs to the entry whose
code refers to it.
"""

import bisect
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tvmattend.errors import BundleError

_FUNCTION = 2
_SYMTAB, _DYNSYM = 2, 11
_EXECUTABLE = 4
_PAIR = 16  # instructions between an `adrp` and its `add`, at most


class Function(NamedTuple):
    """A range of addresses, as the file numbers them."""

    start: int
    end: int
    name: str


class _Section(NamedTuple):
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class Library:
    """An ELF file.

    Attributes:
        functions: Sorted by address.
        segments: (file offset, size in the file, address) of what is loaded.
        entries: Where symbols say that a function begins.
    """

    functions: tuple[Function, ...]
    segments: tuple[tuple[int, int, int], ...]
    entries: frozenset[int]

    def address_of(self, offset: int) -> int | None:
        """Give the address at which a file offset is loaded."""
        for begin, size, address in self.segments:
            if begin <= offset < begin + size:
                return address + offset - begin
        return None

    def name_of(self, address: int) -> str | None:
        """Give the function at an address."""
        place = bisect.bisect_right(self.functions, (address, 1 << 63, "")) - 1
        if place >= 0 and self.functions[place].start <= address < self.functions[place].end:
            return self.functions[place].name
        return None


def read_library(path: Path, own: str = "") -> Library:
    """Read the functions of a file.

    Args:
        path: A 64-bit little-endian ELF file.
        own: Prefix of the entries to which local functions are given; the prefix is cut off.

    Raises:
        BundleError: It is no such file.
    """
    data = path.read_bytes()
    try:
        return _read(data, own)
    except (struct.error, ValueError, IndexError) as error:
        raise BundleError(f"{path} is not a sound ELF file: {error}", "build it again") from error


def _read(data: bytes, own: str) -> Library:
    if data[:6] != b"\x7fELF\x02\x01":
        raise IndexError("no 64-bit little-endian header")
    program_at, section_at = struct.unpack_from("<QQ", data, 32)
    program_size, programs, section_size, sections_count = struct.unpack_from("<4H", data, 54)
    segments = []
    for place in range(programs):
        at = program_at + place * program_size
        kind, _, offset, address, _, in_file = struct.unpack_from("<IIQQQQ", data, at)
        if kind == 1:
            segments.append((offset, in_file, address))
    sections = []
    for place in range(sections_count):
        at = section_at + place * section_size
        _, kind, flags, address, offset, size, link = struct.unpack_from("<IIQQQQI", data, at)
        sections.append(_Section(kind, flags, address, offset, size, link))
    functions = _symbols(data, sections)
    entries = frozenset(function.start for function in functions)
    if own:
        functions = _with_locals(data, sections, functions, own)
    return Library(tuple(sorted(functions)), tuple(segments), entries)


def _symbols(data: bytes, sections: list[_Section]) -> list[Function]:
    found: dict[int, Function] = {}
    tables = [s for s in sections if s.kind in {_SYMTAB, _DYNSYM}]
    for table in sorted(tables, key=lambda section: section.kind == _DYNSYM):
        names = sections[table.link]
        for at in range(table.offset, table.offset + table.size, 24):
            name_at, info, _, index, address, size = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 == _FUNCTION and index and size:
                begin = names.offset + name_at
                name = data[begin : data.index(b"\0", begin)].decode("utf-8", "replace")
                found.setdefault(address, Function(address, address + size, name))
    return list(found.values())


def _with_locals(
    data: bytes, sections: list[_Section], functions: list[Function], own: str
) -> list[Function]:
    """Give each unnamed function the name of the entry that refers to it first."""
    text = next(
        (s for s in sections if s.flags & _EXECUTABLE and any(
            s.address <= f.start < s.address + s.size for f in functions)), None
    )  # fmt: skip
    if text is None:
        return functions
    words = struct.unpack_from(f"<{text.size // 4}I", data, text.offset)
    entries = [f for f in functions if f.name.startswith(own)]
    named = {f.start: f.end for f in functions}
    limits = range(text.address, text.address + text.size)
    references = [pair for pair in _references(words, text.address) if pair[1] in limits]
    starts = sorted({*named, *(target for _, target in references), limits.stop})
    # A jump past the next function's start is a call at the end of a function.
    for here, target in _jumps(words, text.address):
        if target in limits and bisect.bisect(starts, here) != bisect.bisect(starts, target):
            references.append((here, target))
    calls = {target for _, target in references}
    starts = sorted({*starts, *calls})
    sites = sorted(references)
    owners = {f.start: f.name.removeprefix(own) for f in entries}
    queue = deque(f.start for f in entries)
    while queue:
        start = queue.popleft()
        end = named.get(start) or starts[bisect.bisect_right(starts, start)]
        for at in range(bisect.bisect_left(sites, (start, 0)), len(sites)):
            site, target = sites[at]
            if site >= end:
                break
            if target in calls and target not in named and target not in owners:
                owners[target] = owners[start]
                queue.append(target)
    result = [f for f in functions if f.start not in owners]
    for start, name in owners.items():
        end = named.get(start) or starts[bisect.bisect_right(starts, start)]
        result.append(Function(start, end, name))
    return result


def _references(words: tuple[int, ...], base: int) -> list[tuple[int, int]]:
    """Calls (`bl`) and addresses taken (`adr`, `adrp` with the `add` that follows)."""
    found = []
    pages: dict[int, tuple[int, int]] = {}
    for place, word in enumerate(words):
        here = base + 4 * place
        if word & 0xFC000000 == 0x94000000:  # bl
            offset = (word & 0x3FFFFFF) - ((word & 0x2000000) << 1)
            found.append((here, here + 4 * offset))
        elif word & 0x1F000000 == 0x10000000:  # adr, adrp
            value = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            value -= (value & 0x100000) << 1
            if word >> 31:
                pages[word & 31] = (place, (here & ~0xFFF) + (value << 12))
            else:
                found.append((here, here + value))
        elif word & 0xFFC00000 == 0x91000000 and (word >> 5 & 31) in pages:  # add x, x, #imm
            since, page = pages[word >> 5 & 31]
            if place - since <= _PAIR:
                found.append((here, page + (word >> 10 & 0xFFF)))
    return found


def _jumps(words: tuple[int, ...], base: int) -> list[tuple[int, int]]:
    """Unconditional branches (`b`)."""
    found = []
    for place, word in enumerate(words):
        if word & 0xFC000000 == 0x14000000:
            offset = (word & 0x3FFFFFF) - ((word & 0x2000000) << 1)
            found.append((base + 4 * place, base + 4 * (place + offset)))
    return found
