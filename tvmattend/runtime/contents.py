# SPDX-License-Identifier: Apache-2.0
"""What is in a bundle's directory: nothing of it is believed before it was compared."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import types
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

from tvmattend.runtime.faults import BundleError, SignatureError, ToolMissingError
from tvmattend.runtime.manifest_fields import FIELDS, is_text

SCHEMA = 1  # of manifest.json; a bundle with a greater one is refused

AGAIN = "copy or build the bundle again"
_SIGNATURE = "signature.json"
_MANIFEST_BYTES = 1 << 24  # what is larger is damage
# Python leaves this when the wrapper is imported from the bundle.
_LEFT_BEHIND = re.compile(r"__pycache__(/tvmattend_(runtime|standalone|signature)\.[\w.-]+\.pyc)?")


def read_manifest(directory: Path, require_signature: Any = None) -> dict[str, Any]:
    """Read manifest.json; refuse what is not one, or of a schema that this file does not know.

    Args:
        directory: The bundle.
        require_signature: A public key, which must have signed the bytes that are read; see `load`.
    """
    path = directory / "manifest.json"
    content = manifest_bytes(directory)
    if require_signature is not None:
        _check_signature(directory, content, require_signature)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}", AGAIN) from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int:
        raise BundleError(f"{path} has no `schema` that is a whole number", AGAIN)
    if schema > SCHEMA:
        raise BundleError(
            f"{path} is of schema {schema}; this runtime knows {SCHEMA}",
            "use the bundle's own tvmattend_runtime.py, or a newer tvmattend",
        )
    if schema < 1:
        raise BundleError(f"{path} is of schema {schema}, but they begin with 1", AGAIN)
    for name, holds in FIELDS.items():
        if name not in manifest or not holds(manifest[name]):
            raise BundleError(f"{path}: `{name}` is missing or malformed", AGAIN)
    if manifest["library"] not in manifest["files"]:
        raise BundleError(f"{path} does not list {manifest['library']}", AGAIN)
    return dict(manifest)


def manifest_bytes(directory: Path) -> bytes:
    """Read manifest.json as it is; refuse what cannot be one by its kind or size."""
    path, hint = directory / "manifest.json", "give the directory that `tvmattend build` made"
    try:
        if not directory.exists():
            raise BundleError(f"there is no bundle {directory}", hint)
        if path.is_symlink():
            raise BundleError(f"{path} is a symbolic link", AGAIN)
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise BundleError(f"{path} is not a file", hint)
        with path.open("rb") as stream:
            content = stream.read(_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f"{path} cannot be read: {reason}", hint) from error
    if len(content) > _MANIFEST_BYTES:
        raise BundleError(f"{path} has more than {_MANIFEST_BYTES} bytes", hint)
    return content


def _check_signature(directory: Path, manifest: bytes, key: Any) -> None:
    """Refuse a manifest without the signature of a key."""
    if Path(__file__).resolve().parent == directory.resolve():
        warnings.warn(
            "a signature is required by code of the bundle itself, which was not checked: keep "
            f"copies of {Path(__file__).name} and tvmattend_signature.py outside of it",
            stacklevel=4,
        )
    signature = sibling("signature")
    try:
        signature.check_signature(manifest, directory / _SIGNATURE, key)
    except signature.SignatureFault as error:
        raise SignatureError(str(error), error.hint) from error
    except ImportError as error:
        raise ToolMissingError(
            f"a signature is required, and cryptography does not import: {error}",
            "python3 -m pip install cryptography",
        ) from error


def check_files(directory: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compare a bundle's directory with the manifest: those files, whole, and nothing else.

    Raises:
        BundleError: A file is missing, truncated, changed, extra, a link or unreadable, or a path
            leads out.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or not path.parts:
            raise BundleError(f"manifest.json lists `{name!a}`, a path out of the bundle", AGAIN)
        if not is_text(name) or name in {"manifest.json", _SIGNATURE}:
            raise BundleError(f"manifest.json lists `{name!a}`, which no bundle has", AGAIN)
    try:
        _check_directory(directory, files)
        for name, entry in files.items():
            _check_file(directory / name, entry)
    except OSError as error:
        raise BundleError(
            f"{error.filename or directory} cannot be read: {error.strerror}", AGAIN
        ) from error


def _check_directory(directory: Path, files: dict[str, dict[str, Any]]) -> None:
    known = {"manifest.json", _SIGNATURE, *files}
    folders = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    for found in sorted(directory.rglob("*")):
        name = found.relative_to(directory).as_posix()
        if found.is_symlink():
            raise BundleError(f"{found} is a symbolic link", AGAIN)
        if not _LEFT_BEHIND.fullmatch(name) and name not in (folders if found.is_dir() else known):
            raise BundleError(f"{found} is not part of the bundle", "remove it")


def _check_file(file: Path, entry: dict[str, Any]) -> None:
    size = entry["size"]
    if not file.is_file():
        raise BundleError(f"{file} is missing", AGAIN)
    if file.stat().st_size != size:
        raise BundleError(f"{file} has {file.stat().st_size} bytes, not {size}", AGAIN)
    if file_sha256(file) != entry["sha256"]:
        raise BundleError(f"{file} has changed: its SHA-256 is not the manifest's", AGAIN)


def file_sha256(path: Path) -> str:
    """Give the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(functools.partial(stream.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def file_content(directory: Path, name: str, files: dict[str, dict[str, Any]]) -> bytes:
    """Read a file of a bundle that was checked before, and check what was read.

    Raises:
        BundleError: It has changed since, or cannot be read.
    """
    path = directory / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", AGAIN) from error
    if name not in files or hashlib.sha256(content).hexdigest() != files[name]["sha256"]:
        raise BundleError(f"{path} has changed: its SHA-256 is not the manifest's", AGAIN)
    return content


class Code:
    """Where the code of a checked bundle is loaded from.

    Without a signature that is its files: who may write them may write the manifest as well, and
    the system can drop and share their pages. Where a signature was required, it is copies that are
    checked as they are made and that nobody can change, so that the check holds for what runs.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]], private: bool) -> None:
        self._directory = directory.resolve()
        self._files = files
        self._private = private

    def path(self, name: str) -> str:
        """Give what dlopen is to be called with for a file of the bundle."""
        sha256, file = self._files[name]["sha256"], self._directory / name
        if not self._private:
            return _fresh_name(self._directory, name, sha256)
        signature = sibling("signature")
        try:
            return str(signature.private_copy(file, sha256))
        except signature.SignatureFault as error:
            raise SignatureError(str(error), error.hint) from error
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}", AGAIN) from error


_had: dict[Path, list[str]] = {}  # file -> SHA-256 of each content that it has had


def _fresh_name(directory: Path, name: str, sha256: str) -> str:
    """Name a library so that dlopen, which goes by names, does not give the one it replaced."""
    had = _had.setdefault(directory / name, [])
    if sha256 not in had:
        had.append(sha256)
    return f"{directory}/{'./' * had.index(sha256)}{name}"


@functools.cache
def sibling(name: str) -> Any:
    """Import `<name>.py` of the package or `tvmattend_<name>.py` of a bundle: what is beside."""
    here = Path(__file__).resolve()
    file = here.with_name(f"{name}.py" if here.name == "contents.py" else f"tvmattend_{name}.py")
    try:
        source = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} is missing: {error.strerror}", AGAIN) from error
    module = types.ModuleType(f"tvmattend_{name}")
    module.__file__ = str(file)
    # Python's own import would take what lies in __pycache__ for it, which nobody has checked.
    exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    return module
