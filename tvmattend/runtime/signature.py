# SPDX-License-Identifier: Apache-2.0
"""Who vouches for a bundle: its Ed25519 signature, and private copies of what was vouched for.

`load(bundle, require_signature=...)` uses this file, which every bundle has as
`tvmattend_signature.py`; nothing else needs it, nor the package `cryptography`.

A bundle's `signature.json` holds the public key and the signature of manifest.json, byte for byte,
which holds the SHA-256 of every other file. Only the key that the caller gives is believed; the
one in the file is there to say whose signature it is.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

SCHEMA = 1  # of signature.json
ALGORITHM = "Ed25519"
FILE = "signature.json"

_RAW_BYTES = 32  # of a public key
_SMALL = 1 << 16
_SEE = "make a pair with `tvmattend sign --new-key FILE`"
# Of linux/memfd.h; Python 3.9 does not have it. Where the system asks for it (vm.memfd_noexec) a
# memory file cannot be executed as a program; it can still be mapped as a library.
_NOEXEC_SEAL = 8

_copies: dict[str, int] = {}  # SHA-256 -> descriptor of its private copy


class SignatureFault(Exception):  # noqa: N818  (contents.py makes a SignatureError of it)
    """A signature or a key that is missing, malformed or wrong; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def check_signature(content: bytes, file: Path, key: Any) -> None:
    """Refuse a manifest that `key` has not signed.

    Args:
        content: The bytes of manifest.json that are to be believed.
        file: The bundle's signature.json.
        key: See `public_key`.

    Raises:
        SignatureFault: No signature, a malformed one, one by another key, or one of other bytes;
            or `key` is none.
        ImportError: `cryptography` is not installed.
    """
    from cryptography.exceptions import InvalidSignature

    wanted = public_key(key)
    claimed, signature = _read(file)
    if claimed != raw_key(wanted):
        raise SignatureFault(
            f"{file}: signed by {fingerprint(claimed)}, not by {fingerprint(raw_key(wanted))}",
            "give the public key of who signed it, if you trust them; else do not load it",
        )
    try:
        wanted.verify(signature, content)
    except InvalidSignature as error:
        raise SignatureFault(
            f"{file.with_name('manifest.json')} is not what {fingerprint(claimed)} signed: "
            "it, or the signature, was changed",
            "copy the bundle again, or sign what is there if you trust it: `tvmattend sign`",
        ) from error


def public_key(source: Any) -> Any:
    """Read an Ed25519 public key.

    Args:
        source: The path of a PEM file (`openssl pkey -pubout`, `tvmattend sign --new-key`) or of an
            OpenSSH one (`ssh-ed25519 AAAA...`); or, as `bytes`, the content of such a file or the
            32 bytes of the key itself.

    Returns:
        A `cryptography` `Ed25519PublicKey`.

    Raises:
        SignatureFault: It is none, or is a private key.
        ImportError: `cryptography` is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    given = isinstance(source, (bytes, bytearray))
    where = "the key given" if given else os.fspath(source)
    content = bytes(source) if given else small_file(Path(source), "the key")
    if len(content) == _RAW_BYTES:
        return Ed25519PublicKey.from_public_bytes(content)
    text = content.strip()
    if b"PRIVATE KEY-----" in text:
        raise SignatureFault(
            f"{where} is a private key",
            "give the public one beside it (.pub), and keep the private one to yourself",
        )
    read = serialization.load_pem_public_key
    if text.startswith((b"ssh-", b"ecdsa-")):
        read = serialization.load_ssh_public_key
    try:
        key = read(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureFault(f"{where} is not a public key in PEM or OpenSSH form", _SEE) from error
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.strip("_").replace("PublicKey", "")
        raise SignatureFault(f"{where} is a key for {kind}, not for {ALGORITHM}", _SEE)
    return key


def raw_key(key: Any) -> bytes:
    """Give the 32 bytes of a `cryptography` public key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    # `public_bytes_raw` is newer than the package that Debian 12 has.
    return bytes(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def fingerprint(raw: bytes) -> str:
    """Name a public key (32 bytes) for a person: the start of its SHA-256."""
    return f"ed25519:{hashlib.sha256(raw).hexdigest()[:16]}"


def dumps(raw: bytes, signature: bytes) -> str:
    """Give the text of signature.json.

    Args:
        raw: The public key, 32 bytes.
        signature: 64 bytes.
    """
    data = {
        "schema": SCHEMA,
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(raw).decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    return json.dumps(data, indent=1) + "\n"


def small_file(path: Path, what: str) -> bytes:
    """Read a regular file that is small by its nature; a pipe or a device would never end.

    Raises:
        SignatureFault: It is missing, unreadable, too large, or no regular file.
    """
    try:
        # Not to wait for the other end of a pipe; what it is, is asked of what was opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            content = stream.read(_SMALL + 1) if regular else b""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise SignatureFault(f"{what} {path} cannot be read: {reason}", "check the path") from error
    if not regular or len(content) > _SMALL:
        raise SignatureFault(f"{what} {path} is not a small file", "check the path")
    return content


def private_copy(path: Path, sha256: str) -> str:
    """Copy a file into memory that nobody can change any more, and check the copy.

    What is hashed is what will be mapped: neither replacing the file nor writing into it has an
    effect afterwards. A copy lives as long as the process, and serves every load of that content.

    Args:
        path: Of the file.
        sha256: What its content must have.

    Returns:
        A path of the copy, for dlopen.

    Raises:
        SignatureFault: The content is another, or the system has no such memory.
        OSError: The file cannot be read.
    """
    if sha256 not in _copies:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise SignatureFault(f"{path} has changed while it was loaded", "copy the bundle again")
        _copies[sha256] = _sealed(f"tvmattend-{sha256}-{path.name}", content)
    # The descriptor stays open: dlopen goes by names, and this one must not come to mean another.
    return f"/proc/self/fd/{_copies[sha256]}"


def _sealed(name: str, content: bytes) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            descriptor = os.memfd_create(name, flags | _NOEXEC_SEAL)
        except OSError:  # Linux before 6.3 does not know the flag
            descriptor = os.memfd_create(name, flags)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise SignatureFault(
            f"no private memory to load code from: {error.strerror}",
            "signed bundles need Linux 3.17 or later, memfd_create, and room for the library",
        ) from error
    return descriptor


def _read(file: Path) -> tuple[bytes, bytes]:
    """Give the public key and the signature that a signature.json holds."""
    again = "copy the bundle again, or sign it: `tvmattend sign BUNDLE --key KEY`"
    if not os.path.lexists(file):
        raise SignatureFault(f"the bundle is not signed: there is no {file}", again)
    if file.is_symlink():
        raise SignatureFault(f"{file} is a symbolic link", again)
    try:
        data = json.loads(small_file(file, "the signature"))
    except (ValueError, RecursionError) as error:
        raise SignatureFault(f"{file} is not JSON: it is cut or damaged", again) from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int:
        raise SignatureFault(f"{file} is no signature: it has no `schema`", again)
    if schema != SCHEMA:
        raise SignatureFault(
            f"{file} is of schema {schema}; this runtime knows {SCHEMA}",
            "use a newer tvmattend" if schema > SCHEMA else again,
        )
    if data.get("algorithm") != ALGORITHM:
        raise SignatureFault(f"{file}: the algorithm is not {ALGORITHM}", again)
    parts = []
    for name, size in (("public_key", _RAW_BYTES), ("signature", 64)):
        try:
            part = base64.b64decode(data.get(name) or "", validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise SignatureFault(f"{file}: `{name}` is not base64", again) from error
        if len(part) != size:
            raise SignatureFault(f"{file}: `{name}` has {len(part)} bytes, not {size}", again)
        parts.append(part)
    return parts[0], parts[1]
