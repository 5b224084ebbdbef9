# SPDX-License-Identifier: Apache-2.0
"""Signing a bundle with an Ed25519 key, and making such a key.

What is signed is manifest.json, byte for byte; it has the SHA-256 of every other file. The device's
side, which checks it, is `runtime/signature.py`.
"""

import getpass
import os
import sys
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.bundle.verify import verify
from tvmattend.errors import OutputExistsError, SignatureError, StorageError, ToolMissingError
from tvmattend.runtime import network, signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PASSPHRASE = "TVMATTEND_KEY_PASSPHRASE"  # noqa: S105  (the name of a variable)
_MAKE = "make a pair with `tvmattend sign --new-key FILE`"


@dataclass(frozen=True)
class KeyPair:
    """Where a new key is.

    Attributes:
        private: File of the private key, PEM (PKCS 8), for its owner's eyes only.
        public: File of the public key, PEM, for everyone.
        fingerprint: Of the public key.
    """

    private: str
    public: str
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Signed:
    """A bundle that was signed.

    Attributes:
        bundle: Its directory.
        signature: The file that was written.
        fingerprint: Of the public key that it is to be checked with.
        files: How many files the signature covers, the manifest included.
    """

    bundle: str
    signature: str
    fingerprint: str
    files: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def create_key(path: str | Path) -> KeyPair:
    """Make a key pair: `path`, and `path` with `.pub` behind it.

    Raises:
        OutputExistsError: One of them is there; a key is never replaced.
        StorageError: They cannot be written.
        ToolMissingError: `cryptography` is not installed.
    """
    private, public = Path(path), Path(f"{path}.pub")
    for place in (private, public):
        if os.path.lexists(place):
            raise OutputExistsError(f"{place} is there already", "choose another name for the key")
    try:
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _no_cryptography(error) from error
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )  # fmt: skip
    told = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    _write_new(private, secret, 0o600)
    try:
        _write_new(public, told, 0o644)
    except BaseException:
        private.unlink()
        raise
    name = signature.fingerprint(signature.raw_key(key.public_key()))
    return KeyPair(str(private), str(public), name)


def sign_bundle(bundle: str | Path, key: str | Path) -> Signed:
    """Sign a bundle, which is checked first; a signature that is there is replaced.

    Args:
        bundle: Its directory.
        key: File of an Ed25519 private key: PEM, or OpenSSH's form. For an encrypted one the
            passphrase is `$TVMATTEND_KEY_PASSPHRASE`, or asked for on the terminal.

    Raises:
        BundleError: The bundle is damaged: what is signed is what was built.
        SignatureError: The key cannot be read.
        StorageError: The signature cannot be written.
        ToolMissingError: `cryptography` is not installed.
    """
    place = Path(bundle).absolute()  # `.` has no name to stage beside
    # The bytes that are signed are those that were read first: should the manifest be exchanged in
    # between, the signature fits neither.
    content = network.manifest_bytes(place)
    manifest = verify(place)
    secret = _private_key(Path(key))
    raw = signature.raw_key(secret.public_key())
    text = signature.dumps(raw, secret.sign(content))
    file = place / signature.FILE
    staged = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")
    try:
        with staged.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(file)
    except OSError as error:
        with suppress(OSError):  # a file system that is read only refuses this, too
            staged.unlink()
        raise StorageError(
            f"{file} could not be written: {error.strerror}", "sign a copy that you may write to"
        ) from error
    verify(place, require_signature=raw)
    return Signed(str(place), str(file), signature.fingerprint(raw), len(manifest.files) + 1)


def open_to_others(key: str | Path) -> bool:
    """Whether others than its owner may read a private key."""
    return bool(Path(key).stat().st_mode & 0o077)


def _private_key(path: Path) -> "Ed25519PrivateKey":
    try:
        content = signature.small_file(path, "the key").strip()
    except signature.SignatureFault as error:
        raise SignatureError(str(error), error.hint) from error
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _no_cryptography(error) from error
    if b"PUBLIC KEY-----" in content or content.startswith(b"ssh-"):
        raise SignatureError(f"{path} is a public key", "sign with the private one")
    openssh = b"OPENSSH PRIVATE KEY" in content
    read = form.load_ssh_private_key if openssh else form.load_pem_private_key
    try:
        try:
            key = read(content, None)
        except TypeError:  # how the library says that the key is encrypted
            key = read(content, _passphrase(path))
    except UnsupportedAlgorithm as error:
        hint = 'python3 -m pip install "cryptography[ssh]"' if "bcrypt" in str(error) else _MAKE
        raise SignatureError(f"{path} cannot be read: {error}", hint) from error
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"{path} cannot be read as a private key: damaged, or another passphrase", _MAKE
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} is not a key for {signature.ALGORITHM}", _MAKE)
    return key


def _passphrase(path: Path) -> bytes:
    given = os.environ.get(_PASSPHRASE)
    if given is None and sys.stdin.isatty():
        given = getpass.getpass(f"Passphrase of {path}: ")
    if not given:
        raise SignatureError(
            f"{path} is encrypted, and no passphrase was given",
            f"set ${_PASSPHRASE}, or sign on a terminal, where it is asked for",
        )
    return given.encode()


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that was not there, with its permissions from the start; whole or not at all."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(descriptor)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error.strerror}", "choose another place for the key"
        ) from error


def _no_cryptography(error: ImportError) -> ToolMissingError:
    return ToolMissingError(
        f"cryptography does not import: {error}", "python3 -m pip install cryptography"
    )
