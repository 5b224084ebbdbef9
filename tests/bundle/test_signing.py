# SPDX-License-Identifier: Apache-2.0
"""Signatures: whose they are, what they cover, and every way in which one can be wrong."""

import base64
import errno
import importlib.util
import json
import os
import py_compile
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from canary import PYTHON_CANARY, Cage, canary_bytes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sample_bundles import cortex_a72_bundle, rehash, rewrite_manifest

from tvmattend.bundle import BundleContents, verify, write_bundle
from tvmattend.bundle.signing import KeyPair, create_key, open_to_others, sign_bundle
from tvmattend.device.emulated import EmulatedPython
from tvmattend.errors import (
    BundleError,
    OutputExistsError,
    SignatureError,
    StorageError,
    ToolMissingError,
)
from tvmattend.runtime import load, network, signature
from tvmattend.runtime.remote import load_remote


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return create_key(tmp_path_factory.mktemp("keys") / "mine.pem")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return create_key(tmp_path_factory.mktemp("keys") / "theirs.pem")


@pytest.fixture
def signed(bundle: Path, keys: KeyPair) -> Path:
    sign_bundle(bundle, keys.private)
    return bundle


def refusal(bundle: Path, key: Any) -> str:
    """The one reason for which `verify` and `load` refuse a bundle."""
    with pytest.raises(SignatureError) as strict:
        verify(bundle, require_signature=key)
    with pytest.raises(network.SignatureError) as device:
        load(bundle, require_signature=key)
    assert str(strict.value) == str(device.value)
    assert strict.value.exit_code == device.value.exit_code == 23
    assert strict.value.hint
    assert "\n" not in str(strict.value) + strict.value.hint
    return str(strict.value)


def test_a_signed_bundle_loads_for_its_key_and_without(signed: Path, keys: KeyPair) -> None:
    assert load(signed, require_signature=keys.public).self_test() == load(signed).self_test()
    manifest = verify(signed, require_signature=keys.public)
    assert signature.FILE not in manifest.files


def test_what_was_signed_is_found_out_with_openssls_own_form(signed: Path, keys: KeyPair) -> None:
    data = json.loads((signed / signature.FILE).read_text())
    key = form.load_pem_public_key(Path(keys.public).read_bytes())
    key.verify(base64.b64decode(data["signature"]), (signed / "manifest.json").read_bytes())  # type: ignore[union-attr, call-arg]
    assert data["algorithm"] == "Ed25519"


def test_a_public_key_has_several_forms(signed: Path, keys: KeyPair, tmp_path: Path) -> None:
    key = form.load_pem_public_key(Path(keys.public).read_bytes())
    line = key.public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH) + b" me@here\n"
    (tmp_path / "id.pub").write_bytes(line)
    forms: list[Any] = [
        keys.public, Path(keys.public), Path(keys.public).read_bytes(), tmp_path / "id.pub", line,
        signature.raw_key(key), Path(keys.public).read_bytes().replace(b"\n", b"\r\n"),
    ]  # fmt: skip
    for each in forms:
        verify(signed, require_signature=each)


def test_a_key_that_openssh_made_signs(bundle: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()
    )  # fmt: skip
    (tmp_path / "id_ed25519").write_bytes(content)
    sign_bundle(bundle, tmp_path / "id_ed25519")
    verify(bundle, require_signature=signature.raw_key(key.public_key()))


def test_an_encrypted_key_needs_its_passphrase(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    lock = form.BestAvailableEncryption(b"secret")
    content = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock)
    (tmp_path / "locked.pem").write_bytes(content)
    with pytest.raises(SignatureError, match="is encrypted") as caught:
        sign_bundle(bundle, tmp_path / "locked.pem")
    assert "TVMATTEND_KEY_PASSPHRASE" in caught.value.hint
    monkeypatch.setenv("TVMATTEND_KEY_PASSPHRASE", "wrong")
    with pytest.raises(SignatureError, match="cannot be read"):
        sign_bundle(bundle, tmp_path / "locked.pem")
    monkeypatch.setenv("TVMATTEND_KEY_PASSPHRASE", "secret")
    sign_bundle(bundle, tmp_path / "locked.pem")
    verify(bundle, require_signature=signature.raw_key(key.public_key()))


def test_a_new_key_is_its_owners_and_replaces_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pair = create_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(pair.private).stat().st_mode) == 0o600
    assert not open_to_others(pair.private)
    kept = Path(pair.private).read_bytes()
    with pytest.raises(OutputExistsError):
        create_key(tmp_path / "key")
    Path(pair.private).rename(tmp_path / "moved")
    with pytest.raises(OutputExistsError, match=r"key\.pub"):
        create_key(tmp_path / "key")
    assert (tmp_path / "moved").read_bytes() == kept
    with pytest.raises(StorageError):
        create_key(tmp_path / "nowhere" / "key")


@pytest.mark.parametrize("whole", [0, 1])
def test_no_room_for_a_key_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    done: list[int] = []

    def sync(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > whole:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", sync)
        with pytest.raises(StorageError, match="No space left"):
            create_key(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    create_key(tmp_path / "key")


def test_a_damaged_bundle_is_not_signed(bundle: Path, keys: KeyPair) -> None:
    os.truncate(bundle / "model.so", 10)
    with pytest.raises(BundleError, match="has 10 bytes"):
        sign_bundle(bundle, keys.private)
    assert not (bundle / signature.FILE).exists()


def test_a_bundle_that_is_read_only_is_named(
    bundle: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, mode: str = "w", **options: Any) -> Any:
        if "w" not in mode:
            return opened(path, mode, **options)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", lambda path, **_: refuse(path))
    with pytest.raises(StorageError, match=r"signature\.json could not be written") as caught:
        sign_bundle(bundle, keys.private)
    assert caught.value.hint == "sign a copy that you may write to"


def test_the_bundle_may_be_the_working_directory(
    bundle: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    sign_bundle(".", keys.private)
    assert verify(bundle, require_signature=keys.public)


def test_a_signature_is_replaced_whole(signed: Path, keys: KeyPair, others: KeyPair) -> None:
    sign_bundle(signed, others.private)
    verify(signed, require_signature=others.public)
    assert "signed by" in refusal(signed, keys.public)
    assert not [path for path in signed.parent.iterdir() if path.name.startswith(".")]


def test_a_rebuilt_bundle_has_no_signature(
    signed: Path, contents: BundleContents, keys: KeyPair
) -> None:
    write_bundle(signed, contents, force=True)
    assert "not signed" in refusal(signed, keys.public)
    verify(signed)


def _signature(text: str | bytes) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        data = text.encode() if isinstance(text, str) else text
        (bundle / signature.FILE).write_bytes(data)

    return damage


def _field(name: str, value: Any) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        file = bundle / signature.FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))

    return damage


def _to_a_link(bundle: Path) -> None:
    (bundle / signature.FILE).rename(bundle.parent / "s")
    (bundle / signature.FILE).symlink_to(bundle.parent / "s")


def _to_a_pipe(bundle: Path) -> None:
    (bundle / signature.FILE).unlink()
    os.mkfifo(bundle / signature.FILE)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none": (lambda b: (b / signature.FILE).unlink(), "not signed"),
    "empty": (_signature(""), "not JSON"),
    "cut": (lambda b: os.truncate(b / signature.FILE, 100), "not JSON"),
    "deep": (_signature("[" * 60_000), "not JSON"),
    "huge": (_signature(b" " * 70_000), "not a small file"),
    "binary": (_signature(b"\xff\x00"), "not JSON"),
    "list": (_signature("[]"), "no `schema`"),
    "link": (_to_a_link, "symbolic link"),
    "pipe": (_to_a_pipe, "not a small file"),
    "directory": (
        lambda b: ((b / signature.FILE).unlink(), (b / signature.FILE).mkdir()),
        "Is a directory",
    ),
    "schema 0": (_field("schema", 0), "of schema 0; this runtime knows 1"),
    "newer": (_field("schema", 2), "of schema 2; this runtime knows 1"),
    "other algorithm": (_field("algorithm", "none"), "not Ed25519"),
    "short": (_field("signature", base64.b64encode(b"x" * 63).decode()), "63 bytes, not 64"),
    "not base64": (_field("signature", "!"), "not base64"),
    "number": (_field("signature", 5), "not base64"),
    "null key": (_field("public_key", None), "0 bytes, not 32"),
    "zero": (_field("signature", base64.b64encode(bytes(64)).decode()), "is not what ed25519:"),
    "changed manifest": (lambda b: rewrite_manifest(b, threads=3), "is not what ed25519:"),
    "spaces": (
        lambda b: (b / "manifest.json").write_bytes((b / "manifest.json").read_bytes() + b" "),
        "is not what ed25519:",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_signature_that_does_not_hold_is_refused(signed: Path, keys: KeyPair, kind: str) -> None:
    damage, reason = WRONG[kind]
    damage(signed)
    assert reason in refusal(signed, keys.public)


def test_a_changed_file_with_a_manifest_that_fits_is_refused(signed: Path, keys: KeyPair) -> None:
    """The forger who knows the format: new code, new hashes; only the signature is in the way."""
    (signed / "model.so").write_bytes(canary_bytes())
    rehash(signed)
    verify(signed)
    assert "is not what ed25519:" in refusal(signed, keys.public)


def test_a_forger_who_signs_is_named(signed: Path, keys: KeyPair, others: KeyPair) -> None:
    sign_bundle(signed, others.private)
    text = refusal(signed, keys.public)
    assert f"signed by {others.fingerprint}, not by {keys.fingerprint}" in text
    # Claiming to be another does not help.
    claimed = base64.b64encode(signature.raw_key(signature.public_key(keys.public))).decode()
    _field("public_key", claimed)(signed)
    assert "is not what ed25519:" in refusal(signed, keys.public)


def test_a_changed_file_of_a_signed_bundle_is_still_damage(signed: Path, keys: KeyPair) -> None:
    os.truncate(signed / "model.so", 10)
    with pytest.raises(BundleError, match="has 10 bytes"):
        verify(signed, require_signature=keys.public)


def _pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    return public


KEYS: dict[str, tuple[Callable[[KeyPair], bytes], str]] = {
    "empty": (lambda _: b"", "not a public key"),
    "text": (lambda _: b"my key", "not a public key"),
    "cut": (lambda pair: Path(pair.public).read_bytes()[:60], "not a public key"),
    "private": (lambda pair: Path(pair.private).read_bytes(), "is a private key"),
    "rsa": (lambda _: _pem(rsa.generate_private_key(65537, 2048)), "a key for RSA"),
    "ecdsa": (lambda _: _pem(ec.generate_private_key(ec.SECP256R1())), "a key for EC"),
    "openssh": (lambda _: b"ssh-ed25519 AAAA", "not a public key"),
    "large": (lambda _: b"-" * 70_000, "not a small file"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_is_none_is_refused(
    signed: Path, keys: KeyPair, kind: str, tmp_path: Path
) -> None:
    make, reason = KEYS[kind]
    (tmp_path / "key.pub").write_bytes(make(keys))
    assert reason in refusal(signed, tmp_path / "key.pub")


@pytest.mark.parametrize("key", ["no/such/key.pub", "/dev/zero", "nul\0", "."])
def test_a_key_that_is_not_there_is_refused(signed: Path, key: str) -> None:
    assert "key" in refusal(signed, key)


@pytest.mark.parametrize("kind", ["public", "text", "rsa", "missing"])
def test_what_cannot_sign_is_refused(
    bundle: Path, keys: KeyPair, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    secret = rsa.generate_private_key(65537, 2048).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    content = {"public": Path(keys.public).read_bytes(), "text": b"hello", "rsa": secret}
    if kind in content:
        file.write_bytes(content[kind])
    with pytest.raises(SignatureError) as caught:
        sign_bundle(bundle, file)
    assert str(file) in str(caught.value)
    assert not (bundle / signature.FILE).exists()


@pytest.mark.parametrize("action", [load, verify])
def test_without_the_library_the_hint_is_how_to_install_it(
    signed: Path, keys: KeyPair, action: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    action(signed)
    with pytest.raises((ToolMissingError, network.ToolMissingError)) as caught:
        action(signed, require_signature=keys.public)
    assert caught.value.exit_code == 10
    assert caught.value.hint == "python3 -m pip install cryptography"


def test_a_board_gets_what_was_checked(
    signed: Path, keys: KeyPair, others: KeyPair, host_board: str
) -> None:
    with load_remote(signed, host_board, require_signature=keys.public) as net:
        assert max(net.self_test()) < 1e-6
    with (
        pytest.raises(SignatureError),
        load_remote(signed, host_board, require_signature=others.public),
    ):
        pytest.fail("loaded")


# --- Between the check and the loading -----------------------------------------------------------

_SWAP = """
import sys
sys.modules["torch"] = None  # tvm_ffi would import it, for seconds
from pathlib import Path
from tvmattend.runtime import network, process
bundle, canary, name, key = sys.argv[1:]
real = network.check_machine
def swap(*machine):
    real(*machine)
    file = Path(bundle) / name
    if Path(canary).parent.name == "in-place":
        with file.open("r+b") as stream: stream.write(Path(canary).read_bytes())
    else:
        Path(canary).rename(file)
network.check_machine = swap
# What an installed TVM has would be taken instead of the bundle's copy.
process.importlib.util.find_spec = lambda name: None
try:
    network.load(bundle, require_signature=key or None)
except network.DeviceError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("way", ["in-place", "replaced"])
@pytest.mark.parametrize("name", ["model.so", "lib/libtvm_runtime.so"])
def test_code_exchanged_after_the_check_is_not_loaded(
    signed: Path, keys: KeyPair, tmp_path: Path, way: str, name: str
) -> None:
    """The control, without a signature, shows that the canary sings when it is loaded."""
    cage = Cage(tmp_path)
    canary = tmp_path / way / "canary.so"
    canary.parent.mkdir()
    pristine = Path(shutil.copytree(signed, tmp_path / "again"))
    said = {}
    for place, key in ((signed, keys.public), (pristine, "")):
        canary.write_bytes(canary_bytes())
        done = subprocess.run(
            [sys.executable, "-c", _SWAP, place, canary, name, key],
            check=False, capture_output=True, text=True, env=cage.environment, timeout=120,
        )  # fmt: skip
        said[bool(key)] = (cage.sang(), done.stdout)
    assert said[False][0], said
    sang, output = said[True]
    assert not sang
    assert output.startswith("SignatureError"), output
    assert "has changed while it was loaded" in output


def test_a_copy_does_not_follow_its_file_and_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "library.so"
    file.write_bytes(canary_bytes())
    copy = Path(signature.private_copy(file, network.file_sha256(file)))
    file.write_bytes(b"other")
    assert copy.read_bytes() == canary_bytes()
    with pytest.raises(OSError, match="Operation not permitted"):
        copy.write_bytes(b"x")  # it would be truncated first
    with pytest.raises(OSError, match="Operation not permitted"):
        os.pwrite(signature._copies[network.file_sha256(copy)], b"x", 0)
    assert signature.private_copy(file, network.file_sha256(copy)) == str(copy), "one a content"


def test_a_bundle_that_is_loaded_again_is_copied_once(signed: Path, keys: KeyPair) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    load(signed, require_signature=keys.public)
    before = descriptors()
    for _ in range(3):
        load(signed, require_signature=keys.public)
    assert descriptors() == before


def test_golden_vectors_exchanged_after_loading_are_noticed(signed: Path, keys: KeyPair) -> None:
    net = load(signed, require_signature=keys.public)
    np.savez(signed / "golden.npz", input0=np.zeros(1), output0=np.zeros(1))
    with pytest.raises(network.BundleError, match="has changed"):
        net.self_test()


def test_two_processes_of_wrappers_share_the_runtime_of_a_copy(
    signed: Path, keys: KeyPair, tmp_path: Path
) -> None:
    """A second wrapper in the process finds TVM's runtime in it, which came from a copy."""
    program = """
import importlib.util, runpy, sys
sys.modules["torch"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tvm" else find(name, *rest)
folder, key, *bundles = sys.argv[1:]
nets = [runpy.run_path(f"{folder}/tvmattend_runtime.py")["load"](place, require_signature=key)
        for place in bundles]
maps = open("/proc/self/maps").read()
assert "/memfd:tvmattend-" in maps and bundles[0] not in maps, maps
print(max(error for net in nets for error in net.self_test()))
"""
    keeper = tmp_path / "application"
    keeper.mkdir()
    for name in ("tvmattend_runtime.py", "tvmattend_signature.py"):
        shutil.copy(signed / name, keeper)
    again = shutil.copytree(signed, tmp_path / "again")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, keeper, keys.public, signed, again],
        check=False, capture_output=True, text=True, timeout=120, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6


def test_a_wrapper_inside_the_bundle_says_that_nobody_checked_it(
    signed: Path, keys: KeyPair
) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; "
        "sys.modules['torch'] = None; "
        "from tvmattend_runtime import load; load(sys.argv[1], require_signature=sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, signed, keys.public],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "which was not checked" in done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(signed, require_signature=keys.public)


def test_what_lies_in_the_cache_of_python_is_not_run(signed_tiny: Path, tmp_path: Path) -> None:
    """A bundle's loader is run from the file that was checked, not from a `.pyc` beside it."""
    bundle = Path(shutil.copytree(signed_tiny / "standalone", tmp_path / "bundle"))
    cage = Cage(tmp_path)
    (tmp_path / "canary.py").write_text(PYTHON_CANARY)
    cache = importlib.util.cache_from_source(str(bundle / "tvmattend_standalone.py"))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(tmp_path / "canary.py"), cache, invalidation_mode=unchecked)
    start = "import sys; sys.path.insert(0, sys.argv[1]); "
    load_it = "from tvmattend_runtime import load; print(load(sys.argv[1], threads=1).self_test())"
    for program, sings in ((load_it, False), ("import tvmattend_standalone", True)):
        done = subprocess.run(
            [sys.executable, "-c", start + program, bundle],
            check=False, capture_output=True, text=True, env=cage.environment, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert cage.sang() == sings, program


_ON_THE_BOARD = """
import sys
sys.path.insert(0, sys.argv[1])
import tvmattend_runtime
try:
    tvmattend_runtime.load(sys.argv[2], require_signature=b"x" * 32)
except tvmattend_runtime.ToolMissingError as error:
    print(error.hint)
# This Python has no `cryptography`; what is of interest here is where the code comes from.
tvmattend_runtime._check_signature = lambda *_: None
net = tvmattend_runtime.load(sys.argv[2], require_signature=b"x" * 32)
maps = open("/proc/self/maps").read()
print(max(net.self_test()), maps.count("/memfd:tvmattend-"), maps.count(sys.argv[2] + "/"))
"""


@pytest.mark.emulated
def test_an_aarch64_board_loads_code_from_copies(
    device_python: EmulatedPython, tmp_path: Path
) -> None:
    bundle = cortex_a72_bundle(tmp_path)
    keeper = tmp_path / "application"
    keeper.mkdir()
    for name in ("tvmattend_runtime.py", "tvmattend_signature.py"):
        shutil.copy(bundle / name, keeper)
    (keeper / "app.py").write_text(_ON_THE_BOARD)
    done = device_python.run([str(keeper / "app.py"), str(keeper), str(bundle)])
    assert done.returncode == 0, done.stderr
    hint, last = done.stdout.splitlines()
    assert hint == "python3 -m pip install cryptography"
    error, copies, files = last.split()
    assert float(error) < 1e-4
    assert int(copies) >= 2
    assert int(files) == 0
