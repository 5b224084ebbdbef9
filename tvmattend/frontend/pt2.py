# SPDX-License-Identifier: Apache-2.0
"""Read a `.pt2` archive (torch.export.save), and refuse one that brings code.

`torch.export.load` trusts its file. It unpickles sample inputs, tensor subclasses and custom
objects (falling back to `weights_only=False`), loads compiled libraries of AOTInductor, has SymPy
evaluate the shape expressions, and `ExportedProgram.module()` runs the guards as Python. A network
of plain tensors needs none of it, so an archive that would cause any of it is refused before
PyTorch opens it, and the guards are dropped. PyTorch still generates Python from the graph: an
archive from a stranger deserves the same care as a program from one.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from tvmattend.errors import ModelError
from tvmattend.frontend.faults import first_line, quiet

# What PyTorch writes for a symbolic extent: `Add(Symbol('s77', integer=True), Integer(1))`, `2*s0`.
_SYMBOL = r"[su][0-9]+"
_FUNCTIONS = (
    "Abs|Add|CeilDiv|CeilToInt|CleanDiv|Eq|FloorDiv|FloorToInt|Ge|Gt|Identity|IntTrueDiv|Integer"
    "|Le|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|And|Or|PowByNatural|Pow|PythonMod|Rational"
    "|Relational|Symbol|ToFloat|TruncToInt|Where"
)
_WORDS = re.compile(f"{_SYMBOL}|'{_SYMBOL}'|{_FUNCTIONS}|integer|positive|nonnegative|True|False")


def load_archive(path: Path) -> ExportedProgram:
    """Load the exported program of an archive.

    Raises:
        ModelError: Not an archive, damaged, of another version, or holding code.
    """
    # The bytes that are checked are the bytes that are loaded.
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check(archive, path)
        with quiet():
            program = torch.export.load(io.BytesIO(content))
        # Source code, which even `run_decompositions` executes; the shapes are checked without it.
        program._guards_code = []  # noqa: SLF001
    except ModelError:
        raise
    except Exception as error:  # damaged archives fail anywhere in PyTorch's reader
        raise ModelError(
            f"cannot read `{path}`: {first_line(error)}",
            f"export it again with torch.export.save, PyTorch {torch.__version__.split('+')[0]}",
        ) from error
    return program


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    names = [name.casefold() for name in archive.namelist()]
    if len(set(names)) != len(
        names
    ):  # PyTorch's reader may take another entry than the checked one
        raise _refused(path, "two entries of one name", "its directory")
    for name in archive.namelist():
        if "/aotinductor/" in name:
            raise _refused(path, "a compiled library", name)
        if name.endswith(".pt"):
            try:
                torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise _refused(path, "pickled Python objects", name) from error
        elif name.endswith(".json"):
            for key, value in _entries(json.loads(archive.read(name))):
                if key == "use_pickle" and value:
                    raise _refused(path, "pickled tensors", name)
                if key == "path_name" and re.search(r"(custom|opaque)_obj_", str(value)):
                    raise _refused(path, "pickled Python objects", name)
                if key == "expr_str" and not _harmless(str(value)):
                    raise _refused(path, f"the expression `{value}`", name)


def _refused(path: Path, what: str, where: str) -> ModelError:
    return ModelError(
        f"`{path}` holds {what} ({where}), which loading would run",
        "export a network of plain tensors with torch.export.save, or give a factory",
    )


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from _entries(item)


def _harmless(expression: str) -> bool:
    words = re.findall(r"'[^']*'|[A-Za-z_]\w*", expression)
    return re.fullmatch(r"[\w\s'()+*/,=<>-]*", expression) is not None and all(
        _WORDS.fullmatch(word) for word in words
    )
