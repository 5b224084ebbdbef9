# SPDX-License-Identifier: Apache-2.0
"""What an ELF file asks for and what it offers: enough to hold a library to its promise."""

import struct
from dataclasses import dataclass
from pathlib import Path

_SYMTAB, _DYNAMIC, _DYNSYM = 2, 6, 11  # sh_type
_NEEDED = 1  # d_tag
_GLOBAL, _WEAK = 1, 2  # symbol binding
_INTERNAL, _HIDDEN = 1, 2  # symbol visibility


@dataclass(frozen=True)
class Symbols:
    """Global names of an object or a library.

    Attributes:
        undefined: What somebody else has to define, weak references left out.
        visible: What it defines for others.
    """

    undefined: frozenset[str]
    visible: frozenset[str]


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    entry: int


def symbols(path: Path, *, dynamic: bool = False) -> Symbols:
    """Read the symbol table of a 64-bit little-endian ELF file.

    Args:
        path: An object or a shared library.
        dynamic: Read what the dynamic linker sees instead of what the static one does.
    """
    data = path.read_bytes()
    sections = _sections(data)
    undefined: set[str] = set()
    visible: set[str] = set()
    for section in sections:
        if section.kind != (_DYNSYM if dynamic else _SYMTAB):
            continue
        names = sections[section.link]
        for at in range(section.offset, section.offset + section.size, section.entry):
            name_at, info, other, place = struct.unpack_from("<IBBH", data, at)
            name = _text(data, names.offset + name_at)
            binding = info >> 4
            if not name or binding not in {_GLOBAL, _WEAK}:
                continue
            if place == 0:
                undefined.update({name} if binding == _GLOBAL else ())
            elif other & 3 not in {_INTERNAL, _HIDDEN}:
                visible.add(name)
    return Symbols(frozenset(undefined), frozenset(visible))


def needed(path: Path) -> list[str]:
    """Give the libraries that a shared library or program asks for (`readelf -d`)."""
    data = path.read_bytes()
    sections = _sections(data)
    found = []
    for section in sections:
        if section.kind == _DYNAMIC:
            names = sections[section.link]
            for at in range(section.offset, section.offset + section.size, 16):
                tag, value = struct.unpack_from("<qQ", data, at)
                if tag == _NEEDED:
                    found.append(_text(data, names.offset + value))
    return found


def _sections(data: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    entry, count = struct.unpack_from("<HH", data, 58)
    sections = []
    for at in range(table, table + entry * count, entry):
        (kind,) = struct.unpack_from("<I", data, at + 4)
        offset, size, link = struct.unpack_from("<QQI", data, at + 24)
        (each,) = struct.unpack_from("<Q", data, at + 56)
        sections.append(_Section(kind, offset, size, link, each))
    return sections


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("utf-8", errors="replace")
