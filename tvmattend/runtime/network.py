# SPDX-License-Identifier: Apache-2.0
"""Run a tvmattend bundle: numpy arrays in, numpy arrays out.

    from tvmattend_runtime import load      # where tvmattend is installed: tvmattend.runtime

    net = load("path/of/the/bundle")        # checks every file, then loads the library
    y = net(x)
    net.classify("photo.jpg", top=5)        # [(class_index, label, probability), ...]
    net.self_test()                         # against the reference outputs in the bundle

This one file is copied verbatim into every bundle as `tvmattend_runtime.py`. It needs Python 3.9
and numpy (Pillow, to open image files); for a bundle of the format `vm` also the apache-tvm-ffi
wheel, for a `standalone` one `standalone.py`, which the bundle has as `tvmattend_standalone.py`.
To require a signature it needs `cryptography` and `signature.py` (`tvmattend_signature.py`); an
application that does so keeps these files itself, for those in a bundle are its maker's.
Every error carries `exit_code` and `hint`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

SCHEMA = 1  # of manifest.json; a bundle with a greater one is refused

# What moves a terminal's cursor, and halves of characters, which cannot be encoded.
_UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"


class DeviceError(Exception):
    """What went wrong, in one line, and what to do about it, in another (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(_printable(message))
        self.hint = _printable(hint)


def _printable(text: str) -> str:
    """Make one line, for a terminal, of a text that quotes what a file holds."""
    line = re.sub("[\t\n\v\f\r]+", " ", text)
    return re.sub(_UNPRINTABLE, lambda found: f"\\x{ord(found[0]):02x}", line)


class ToolMissingError(DeviceError):
    """A Python package that is needed is not installed."""

    exit_code = 10


class BundleError(DeviceError):
    """The bundle is missing, damaged, or of a newer schema."""

    exit_code = 14


class BundleMismatchError(DeviceError):
    """The bundle is sound, but made for another machine or another runtime."""

    exit_code = 15


class ValidationError(DeviceError):
    """Outputs differ from the reference by more than the tolerance."""

    exit_code = 16


class InputError(DeviceError):
    """An input of the wrong shape, dtype, layout or file type."""

    exit_code = 17


class SignatureError(DeviceError):
    """A signature that is missing or does not fit, or a key that cannot be read."""

    exit_code = 23


class TensorSpec(NamedTuple):
    """One input or output of the network: e.g. `("x", (1, 3, 224, 224), "float32", "NCHW")`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str


class Prediction(NamedTuple):
    """One class of an image; `label` is None where the bundle has no labels."""

    class_index: int
    label: str | None
    probability: float


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    require_signature: str | os.PathLike[str] | bytes | None = None,
) -> Network:
    """Load a bundle; every file is checked before anything of it is loaded.

    Args:
        path: The bundle's directory.
        threads: Threads that run the kernels; by default as many as the bundle was compiled for,
            or as the CPUs that this process may use if those are fewer.
        require_signature: An Ed25519 public key: a file (PEM or OpenSSH), or as `bytes` its
            content. Without the signature of that key over the manifest nothing is loaded, and
            code is loaded from a copy in memory, which nobody can change behind the check.

    Raises:
        BundleError: A file is missing, damaged or not the bundle's.
        BundleMismatchError: Made for another architecture, CPU, or version of the runtime.
        SignatureError: The signature is missing or another's, or the key cannot be read.
        InputError: More threads than CPUs.
        ToolMissingError: apache-tvm-ffi is not installed, or `cryptography` for a signature.
    """
    directory = Path(path)
    manifest = read_manifest(directory, require_signature)
    check_files(directory, manifest["files"])
    check_machine(manifest["target"])
    cpus = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= cpus:
        raise InputError(f"threads={threads}, but this process may use {cpus} CPUs")
    count = threads or min(int(manifest["threads"]), cpus)
    code = Code(directory, manifest["files"], private=require_signature is not None)
    if manifest["format"] == "standalone":
        return Network(directory, manifest, _LocalLibrary(code, manifest, count))
    tvm_ffi = _load_runtime(code, manifest)
    return Network(directory, manifest, _LocalVM(tvm_ffi, code, manifest, count))


class Network:
    """A loaded bundle.

    Any Python thread may call it: a virtual machine is not reentrant, so calls are queued.

    Attributes:
        manifest: manifest.json, as plain data.
        inputs: What `net(...)` takes, in order.
        outputs: What it gives, in order.
        threads: Threads that run the kernels.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], executor: Any) -> None:
        """Join a bundle and what executes it: in this process, or on a board over RPC."""
        self.manifest = manifest
        self.inputs = tensor_specs(manifest["inputs"])
        self.outputs = tensor_specs(manifest["outputs"])
        self.threads: int = executor.threads
        self._directory = directory
        self._executor = executor

    def __call__(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run the network: one array for each of `inputs`; gives one array, or a tuple of them.

        Raises:
            InputError: An array is of another shape, dtype or layout.
        """
        results = self._executor.run(self._fit(arrays))
        return results[0] if len(results) == 1 else tuple(results)

    def classify(self, image: Any, top: int = 5) -> list[Prediction]:
        """Name what an image (see `preprocess`) shows, likeliest first."""
        return self.ranked(self(self.preprocess(image)), top)

    def preprocess(self, image: Any) -> np.ndarray:
        """Make the network's input from an image, by the manifest's recipe."""
        recipe = self.manifest["preprocessing"]
        if recipe is None or len(self.inputs) > 1 or self.inputs[0].shape[0] != 1:
            raise InputError(f"{self.manifest['model']} does not take one image", "call net(x)")
        return preprocess(image, recipe)

    def ranked(
        self, outputs: np.ndarray | tuple[np.ndarray, ...], top: int = 5
    ) -> list[Prediction]:
        """Make probabilities of the first output (softmax; sigmoid if it is one number)."""
        logits = np.ravel(outputs[0] if isinstance(outputs, tuple) else outputs).astype(np.float64)
        powers = np.exp(logits - logits.max())
        shares = powers / powers.sum() if logits.size > 1 else (1 + np.tanh(logits / 2)) / 2
        # By score: shares of widely spread scores all round to 0.
        order = np.argsort(-logits, kind="stable")[: max(top, 1)]
        labels = self.manifest["labels"]
        names = dict(enumerate(labels or ()))
        return [Prediction(int(i), names.get(int(i)), float(shares[i])) for i in order]

    def golden(self) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
        """Read the golden vectors: a pair (inputs, reference outputs) each.

        Raises:
            BundleError: They are not there, or do not fit the network.
        """
        content = file_content(self._directory, "golden.npz", self.manifest["files"])
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                given = [archive[f"input{i}"] for i in range(len(self.inputs))]
                wanted = [archive[f"output{i}"] for i in range(len(self.outputs))]
        except _NOT_NPZ as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BundleError(f"golden.npz does not hold the vectors: {reason}", _AGAIN) from error
        count = len(given[0]) if given[0].ndim else 0
        for spec, stack in zip(self.inputs + self.outputs, given + wanted):  # noqa: B905
            if not count or stack.shape != (count, *spec.shape) or stack.dtype != spec.dtype:
                raise BundleError(f"golden.npz: the vectors of `{spec.name}` do not fit it", _AGAIN)
        return [([x[k] for x in given], [y[k] for y in wanted]) for k in range(count)]

    def golden_errors(self) -> list[float]:
        """Run the golden vectors; give the relative error of each, over all outputs."""
        pairs = ((self._executor.run(self._fit(x)), y) for x, y in self.golden())
        return [max(map(relative_error, results, references)) for results, references in pairs]

    def self_test(self) -> list[float]:
        """Give `golden_errors()`, all within the manifest's tolerance.

        Raises:
            ValidationError: One is above it.
        """
        errors, tolerance = self.golden_errors(), float(self.manifest["tolerance"])
        worst = max(errors)
        if worst > tolerance:
            raise ValidationError(
                f"golden vector {errors.index(worst)}: error {worst:.1e} > {tolerance:.0e}",
                "the library does not compute this network here: build the bundle again",
            )
        return errors

    def time(self, *arrays: np.ndarray, repeat: int = 10, warmup: int = 2) -> list[float]:
        """Give the seconds of `repeat` runs after `warmup` others; copies are not timed."""
        seconds: list[float] = self._executor.time(self._fit(arrays), repeat, warmup)
        return seconds

    def _fit(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(arrays) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"{len(arrays)} inputs given", f"the network takes: {names}")
        return [_checked(spec, array) for spec, array in zip(self.inputs, arrays)]  # noqa: B905


# --- The bundle's files ----------------------------------------------------------------------

_AGAIN = "copy or build the bundle again"
_SIGNATURE = "signature.json"
# How many bytes a manifest, and a tensor, can reasonably have: what is larger is damage.
_MANIFEST_BYTES, _TENSOR_BYTES = 1 << 24, 1 << 30
# Python leaves this when the wrapper is imported from the bundle.
_LEFT_BEHIND = re.compile(r"__pycache__(/tvmattend_(runtime|standalone|signature)\.[\w.-]+\.pyc)?")
# What numpy, zipfile and zlib make of an archive that is none.
_NOT_NPZ = (
    OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error, MemoryError, RuntimeError,
    NotImplementedError, IndexError, SyntaxError, TypeError, OverflowError,
)  # fmt: skip


def _is_text(value: Any) -> bool:
    """Whether it is a string that can be printed: no controls, no halves of characters."""
    return isinstance(value, str) and not re.search(_UNPRINTABLE, value)


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and abs(value) < 1e30


def _is_whole(value: Any, most: int = 1 << 20) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_file(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None
        and type(entry.get("size")) is int
    )


def _is_tensor(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return False
    if not all(_is_text(entry.get(key)) for key in ("name", "dtype", "layout")):
        return False
    if not all(_is_whole(size, _TENSOR_BYTES) for size in entry["shape"]):
        return False
    try:
        dtype = np.dtype(entry["dtype"])
    except (TypeError, ValueError, SyntaxError):
        return False
    size = functools.reduce(int.__mul__, entry["shape"], dtype.itemsize)
    return dtype.kind in "fiub" and size <= _TENSOR_BYTES


def _is_recipe(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    if not all(_is_whole(value.get(key), 1 << 13) for key in ("resize", "crop")):
        return False
    mean, std = value.get("mean"), value.get("std")
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != 3 or len(std) != 3:
        return False
    numbers = [value.get("scale"), *mean, *std]
    return all(map(_is_number, numbers)) and all(std) and bool(value["crop"] <= value["resize"])


def _are(holds: Callable[[Any], bool], *names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(holds(value.get(name)) for name in names)


def _each(holds: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(holds, value))


# What this file, and who prints of a network, rests on; the host reads the rest as strictly.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "classes": lambda value: value is None or _is_whole(value),
    "files": lambda value: isinstance(value, dict) and all(map(_is_file, value.values())),
    "format": lambda value: value in ("vm", "standalone"),
    "inputs": _each(_is_tensor, 1),
    "labels": lambda value: value is None or _each(_is_text)(value),
    # Only that: lib/ holds TVM's own libraries, of which a second copy would end the process.
    "library": lambda value: _is_text(value) and bool(re.fullmatch(r"(model|lib\w+)\.so", value)),
    "model": _is_text,
    "outputs": _each(_is_tensor, 1),
    "preprocessing": _is_recipe,
    "reference": _is_text,
    "target": _are(_is_text, "mcpu", "mtriple"),
    "threads": _is_whole,
    "tolerance": lambda value: type(value) is float and 0 < value < 1,
    "versions": _are(_is_text, "tvm", "tvm_ffi"),
}


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
        raise BundleError(f"{path} is not JSON: {error}", _AGAIN) from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int:
        raise BundleError(f"{path} has no `schema`", _AGAIN)
    if schema > SCHEMA:
        raise BundleError(
            f"{path} is of schema {schema}; this runtime knows {SCHEMA}",
            "use the bundle's own tvmattend_runtime.py, or a newer tvmattend",
        )
    for name, holds in _FIELDS.items():
        if name not in manifest or not holds(manifest[name]):
            raise BundleError(f"{path}: `{name}` is missing or malformed", _AGAIN)
    if manifest["library"] not in manifest["files"]:
        raise BundleError(f"{path} does not list {manifest['library']}", _AGAIN)
    return dict(manifest)


def manifest_bytes(directory: Path) -> bytes:
    """Read manifest.json as it is; refuse what cannot be one by its kind or size."""
    path, hint = directory / "manifest.json", "is it a bundle?"
    try:
        if path.is_symlink():
            raise BundleError(f"{path} is a symbolic link", _AGAIN)
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
    signature = _sibling("signature")
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
            raise BundleError(f"manifest.json lists `{name!a}`, a path out of the bundle", _AGAIN)
        if not _is_text(name) or name in {"manifest.json", _SIGNATURE}:
            raise BundleError(f"manifest.json lists `{name!a}`, which no bundle has", _AGAIN)
    try:
        _check_directory(directory, files)
        for name, entry in files.items():
            _check_file(directory / name, entry)
    except OSError as error:
        raise BundleError(
            f"{error.filename or directory} cannot be read: {error.strerror}", _AGAIN
        ) from error


def _check_directory(directory: Path, files: dict[str, dict[str, Any]]) -> None:
    known = {"manifest.json", _SIGNATURE, *files}
    folders = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    for found in sorted(directory.rglob("*")):
        name = found.relative_to(directory).as_posix()
        if found.is_symlink():
            raise BundleError(f"{found} is a symbolic link", _AGAIN)
        if not _LEFT_BEHIND.fullmatch(name) and name not in (folders if found.is_dir() else known):
            raise BundleError(f"{found} is not part of the bundle", "remove it")


def _check_file(file: Path, entry: dict[str, Any]) -> None:
    size = entry["size"]
    if not file.is_file():
        raise BundleError(f"{file} is missing", _AGAIN)
    if file.stat().st_size != size:
        raise BundleError(f"{file} has {file.stat().st_size} bytes, not {size}", _AGAIN)
    if file_sha256(file) != entry["sha256"]:
        raise BundleError(f"{file} has changed: its SHA-256 is not the manifest's", _AGAIN)


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
        raise BundleError(f"{path} cannot be read: {error.strerror}", _AGAIN) from error
    if name not in files or hashlib.sha256(content).hexdigest() != files[name]["sha256"]:
        raise BundleError(f"{path} has changed: its SHA-256 is not the manifest's", _AGAIN)
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
        signature = _sibling("signature")
        try:
            return str(signature.private_copy(file, sha256))
        except signature.SignatureFault as error:
            raise SignatureError(str(error), error.hint) from error
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}", _AGAIN) from error


_had: dict[Path, list[str]] = {}  # file -> SHA-256 of each content that it has had


def _fresh_name(directory: Path, name: str, sha256: str) -> str:
    """Name a library so that dlopen, which goes by names, does not give the one it replaced."""
    had = _had.setdefault(directory / name, [])
    if sha256 not in had:
        had.append(sha256)
    return f"{directory}/{'./' * had.index(sha256)}{name}"


def tensor_specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Read the manifest's `inputs` or `outputs`."""
    return tuple(TensorSpec(e["name"], tuple(e["shape"]), e["dtype"], e["layout"]) for e in entries)


# --- The machine and TVM's runtime -----------------------------------------------------------

# Flags of /proc/cpuinfo without which a bundle for that CPU dies of an illegal instruction.
_CPU_FLAGS = {
    "x86-64-v2": "popcnt sse4_2 ssse3",
    "x86-64-v3": "avx2 bmi1 bmi2 f16c fma movbe",
    "x86-64-v4": "avx2 bmi1 bmi2 f16c fma movbe avx512bw avx512cd avx512dq avx512f avx512vl",
    "cortex-a55": "asimddp asimdhp atomics",
    "cortex-a76": "asimddp asimdhp atomics",
}

# TVM's libraries, each with a function that it registers: two copies in a process abort it.
_LIBRARIES = {
    "libtvm_runtime.so": "runtime.NumThreads",
    "libtvm_runtime_extra.so": "tvm.contrib.sort.argsort",
}
_loaded: dict[str, tuple[str, str]] = {}  # library -> SHA-256 and version of what is loaded


def check_machine(target: dict[str, Any]) -> None:
    """Refuse a target of another architecture, or with instructions that this CPU lacks."""
    cpu, wanted = target["mcpu"], target["mtriple"].split("-")[0]
    hint = "run it on such a machine, or over RPC: `tvmattend run BUNDLE --rpc HOST:PORT`"
    if wanted == "aarch64":
        hint += " (`tvmattend device --emulate cortex-a72` serves an emulated one)"
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    machine = machine if sys.maxsize > 2**32 else f"{machine} with a 32-bit Python"
    if machine != wanted:
        raise BundleMismatchError(f"the bundle is for {wanted} ({cpu}); this is {machine}", hint)
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    missing = set(_CPU_FLAGS.get(cpu, "").split()) - set(flags[1].split() if flags else ())
    if missing and flags and (wanted == "x86_64") == flags[0].startswith("flags"):
        lacks = ", ".join(sorted(missing))
        raise BundleMismatchError(f"the bundle is for {cpu}; this CPU lacks {lacks}", hint)


def _load_runtime(code: Code, manifest: dict[str, Any]) -> Any:
    """Bring TVM's runtime into the process, once; give the `tvm_ffi` module."""
    wanted = manifest["versions"]["tvm_ffi"]
    install = f"python3 -m pip install apache-tvm-ffi=={wanted}"
    try:
        import tvm_ffi
    except ImportError as error:
        raise ToolMissingError(f"apache-tvm-ffi does not import: {error}", install) from error
    # Post-releases repackage the same library; a patch release may change its ABI.
    if tvm_ffi.__version__.split(".")[:3] != wanted.split(".")[:3]:
        has = tvm_ffi.__version__
        raise BundleMismatchError(f"the bundle needs apache-tvm-ffi {wanted}, not {has}", install)
    for name, registered in _LIBRARIES.items():
        if f"lib/{name}" in manifest["files"]:
            present = tvm_ffi.get_global_func(registered, allow_missing=True) is not None
            _load_library(code, name, present, manifest)
    return tvm_ffi


def _load_library(code: Code, name: str, present: bool, manifest: dict[str, Any]) -> None:
    """Load one of TVM's libraries, unless the process has it (by `import tvm`, another bundle)."""
    sha256 = manifest["files"][f"lib/{name}"]["sha256"]
    if present:
        same, version = _loaded.get(name) or (_mapped_sha256(name), "another")
        has = getattr(sys.modules.get("tvm"), "__version__", version)
        if same != sha256 and has != manifest["versions"]["tvm"]:
            raise BundleMismatchError(
                f"the bundle needs TVM {manifest['versions']['tvm']}; this process has {has}",
                "load the bundle in a process of its own",
            )
        return
    # An installed TVM's, if it is the same file: the process may yet `import tvm`.
    tvm = importlib.util.find_spec("tvm")
    theirs = [Path(r) / "lib" / name for r in (tvm and tvm.submodule_search_locations) or ()]
    found = next((p.resolve() for p in theirs if p.is_file() and file_sha256(p) == sha256), None)
    try:
        ctypes.CDLL(str(found or code.path(f"lib/{name}")), ctypes.RTLD_GLOBAL)
    except OSError as error:
        has = " ".join(platform.libc_ver()).strip() or "another C library"
        raise BundleMismatchError(
            f"{error}; this is {has}", "Linux with glibc 2.28 or later is needed"
        ) from error
    _loaded[name] = sha256, manifest["versions"]["tvm"]


def _mapped_sha256(name: str) -> str:
    """Give the SHA-256 of a library that is in this process; empty if nobody can tell."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    library = re.escape(name)
    copy = re.search(rf" /memfd:tvmattend-([0-9a-f]{{64}})-{library} ", maps)  # signature.py's
    if copy:
        return copy[1]
    mapped = re.search(rf" (/[^\n]*/{library})$", maps, re.MULTILINE)
    return file_sha256(Path(mapped[1])) if mapped else ""


# --- Execution -------------------------------------------------------------------------------

_pool_lock = threading.Lock()


@functools.cache
def _kernel_thread(threads: int) -> ThreadPoolExecutor:
    """The one Python thread from which networks with that many threads run their kernels.

    TVM's pool of workers belongs to the thread that calls it, gets its size on that thread's first
    call, binds its caller to cores and is never freed. A thread of our own gives the pool the
    size asked for, leaves the application's threads unbound, and serves all bundles.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"tvmattend-{threads}")


def _size_pool(tvm_ffi: Any, threads: int, allowed: set[int]) -> None:
    """Give the calling thread a pool of `threads` workers on the fastest of the allowed CPUs."""

    def speed(cpu: int) -> int:
        entry = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq")
        return int(entry.read_text(encoding="ascii")) if entry.is_file() else 0

    cpus = sorted(allowed, key=lambda cpu: (-speed(cpu), cpu))
    fast = [str(cpu) for cpu in cpus if speed(cpu) >= speed(cpus[threads - 1])]
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    # Mode -3: each worker may run on every CPU of the list. The first call of a thread makes its
    # pool, with as many workers as the list has CPUs; the second widens where they may run.
    with _pool_lock:  # TVM passes the length through a global variable
        configure(-3, threads, fast[:threads])
        configure(-3, threads, fast)
    used = tvm_ffi.get_global_func("runtime.NumThreads")()
    if used != threads:
        raise BundleMismatchError(f"TVM runs {used} threads, not the {threads} asked for")


class _LocalVM:
    """The Relax virtual machine of one bundle, in this process."""

    def __init__(self, tvm_ffi: Any, code: Code, manifest: dict[str, Any], threads: int) -> None:
        self.threads = threads
        self._process = os.getpid()
        self._name: str = manifest["library"]
        self._buffers = [_aligned(spec) for spec in tensor_specs(manifest["inputs"])]
        try:
            self._call(self._start, tvm_ffi, code.path(self._name), os.sched_getaffinity(0))
        except (RuntimeError, AttributeError) as error:  # what TVM's loader raises
            made = manifest["versions"]
            raise BundleMismatchError(
                f"{self._name} does not load: {_last_line(error)}",
                f"it was made with TVM {made['tvm']} and apache-tvm-ffi {made['tvm_ffi']}; here is "
                f"apache-tvm-ffi {tvm_ffi.__version__}",
            ) from error

    def run(self, inputs: list[np.ndarray]) -> Any:
        return self._call(self._run, inputs)

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> list[float]:
        for _ in range(warmup + 1):
            self.run(inputs)
        # One by one, so that Ctrl-C need not wait for all of them.
        return [self._call(self._time) for _ in range(repeat)]

    def _call(self, function: Any, *args: Any) -> Any:
        if os.getpid() != self._process:  # the workers do not exist in the child: it would hang
            raise DeviceError("the bundle was loaded before a fork", "load it in the child process")
        return _kernel_thread(self.threads).submit(function, *args).result()

    def _start(self, tvm_ffi: Any, library: str, allowed: set[int]) -> None:
        _size_pool(tvm_ffi, self.threads, allowed)
        self._vm = _open_module(tvm_ffi, library)["vm_load_executable"]()
        self._vm["vm_initialization"](1, 0, 2)  # CPU, device 0, pooled allocator
        self._main = self._vm["main"]
        self._tensors = [tvm_ffi.from_dlpack(buffer) for buffer in self._buffers]

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        for buffer, array in zip(self._buffers, inputs):  # noqa: B905  (Python 3.9)
            np.copyto(buffer, array)
        try:
            result = self._main(*self._tensors)
        except (RuntimeError, ValueError, TypeError) as error:  # what TVM raises
            raise BundleError(f"{self._name} refused: {_last_line(error)}", _AGAIN) from error
        # Copies: an output may be an input's buffer, and the allocator takes its memory back.
        results = [result] if hasattr(result, "__dlpack__") else result
        return [np.from_dlpack(tensor).copy() for tensor in results]

    def _time(self) -> float:
        start = time.perf_counter()
        self._main(*self._tensors)
        return time.perf_counter() - start


def _open_module(tvm_ffi: Any, library: str) -> Any:
    if library.endswith(".so"):
        return tvm_ffi.load_module(library)
    # A private copy is called by a number; `load_module` chooses the loader by the name's end.
    module = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")(library, "so")
    tvm_ffi.get_global_func("ffi.ModuleGlobalsAdd")(module)  # as there: its code stays
    return module


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _LocalLibrary:
    """One instance of a standalone library; the file that runs it lies beside this one."""

    def __init__(self, code: Code, manifest: dict[str, Any], threads: int) -> None:
        self._module = _sibling("standalone")
        name = manifest["library"]
        try:
            self._library = self._module.Library(code.path(name), threads, name)
        except self._module.LibraryError as error:
            raise BundleMismatchError(str(error), error.hint) from error
        self.threads: int = self._library.threads
        for kind in ("inputs", "outputs"):
            found = [tuple(tensor) for tensor in getattr(self._library, kind)]
            if found != [tuple(spec) for spec in tensor_specs(manifest[kind])]:
                raise BundleError(f"{manifest['library']} has other {kind} than said", _AGAIN)

    def run(self, inputs: list[np.ndarray]) -> Any:
        return self._call(self._library.run, inputs)

    def time(self, inputs: list[np.ndarray], repeat: int, warmup: int) -> Any:
        return self._call(self._library.time, inputs, repeat, warmup)

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except self._module.LibraryError as error:
            raise DeviceError(str(error), error.hint) from error


@functools.cache
def _sibling(name: str) -> Any:
    """Import `<name>.py` of the package or `tvmattend_<name>.py` of a bundle: what is beside."""
    here = Path(__file__).resolve()
    file = here.with_name(f"{name}.py" if here.name == "network.py" else f"tvmattend_{name}.py")
    spec = importlib.util.spec_from_file_location(f"tvmattend_{name}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise BundleError(f"{file} is missing", _AGAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _aligned(spec: TensorSpec) -> np.ndarray:
    """Make an array at a multiple of 64 bytes: kernels crash on numpy's own multiples of 16."""
    size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(spec.dtype).reshape(spec.shape)


def _checked(spec: TensorSpec, array: Any) -> np.ndarray:
    """Refuse what is not an array of that shape and dtype, and say what it seems to be."""
    wanted = f"input `{spec.name}` is {spec.dtype}{list(spec.shape)}, {spec.layout}"
    if not isinstance(array, np.ndarray):
        raise InputError(f"{wanted}; got a {type(array).__name__}", "pass a numpy array")
    message = f"{wanted}; got {array.dtype}{list(array.shape)}"
    if array.shape != spec.shape:
        batch, *rest = spec.shape
        nhwc = (batch, *rest[1:], *rest[:1]) if spec.layout == "NCHW" else ()
        hints = {
            spec.shape[1:]: "the batch axis is missing: pass x[None]",
            nhwc: "that is NHWC: pass x.transpose(0, 3, 1, 2)",
            nhwc[1:]: "that is one image, HWC: pass x.transpose(2, 0, 1)[None]",
        }
        hint = hints.get(array.shape) if array.shape else None
        raise InputError(message, hint or "the network is compiled for this one shape")
    if array.dtype != np.dtype(spec.dtype):
        hint = "for images: net.classify(image)" if array.dtype == np.uint8 else ""
        raise InputError(message, hint or f'pass x.astype("{spec.dtype}")')
    return array


def relative_error(result: np.ndarray, reference: np.ndarray) -> float:
    """Give max|result - reference| / max|reference|; infinity if that is not a number."""
    if result.shape != reference.shape:
        return float("inf")
    exact = reference.astype(np.float64)
    scale = max(float(np.abs(exact).max()), sys.float_info.min)
    error = float(np.abs(result - exact).max()) / scale
    return float("inf") if np.isnan(error) else error


# --- Images ----------------------------------------------------------------------------------


def preprocess(image: Any, recipe: dict[str, Any]) -> np.ndarray:
    """Make a float32 array [1, 3, height, width] from an image.

    The shorter side is resized to `resize` (bilinear, antialiased: as Pillow and torchvision do),
    the middle `crop` x `crop` is cut out, then (pixel * `scale` - `mean`) / `std`.

    Args:
        image: A path, a PIL image, or a uint8 array [height, width, 3] of RGB.
        recipe: The manifest's `preprocessing`.
    """
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    short, crop = recipe["resize"], recipe["crop"]
    strip = _resample(pixels, max(short, short * height // width), crop)
    square = _resample(strip.swapaxes(0, 1), max(short, short * width // height), crop)
    scaled = square.transpose(2, 1, 0) * recipe["scale"]
    mean, std = (np.reshape(recipe[key], (3, 1, 1)) for key in ("mean", "std"))
    return np.ascontiguousarray(((scaled - mean) / std)[None], np.float32)


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, (str, os.PathLike)):
        image = _open_image(Path(image))
    if hasattr(image, "convert"):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise InputError(f"a {type(image).__name__} is not an image", "pass a path or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"an image is uint8 [height, width, 3]; got {image.dtype}{list(image.shape)}",
            "if it is normalised already: net(x)",
        )
    return image


def _open_image(path: Path) -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        hint = "pip install pillow, or pass an array"
        raise ToolMissingError(f"Pillow does not import: {error}", hint) from error
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        hint = "give a photograph (JPEG, PNG), or pass an array"
        raise InputError(f"{path} does not open as an image: {error}", hint) from error


def _resample(image: np.ndarray, size: int, crop: int) -> np.ndarray:
    """Resize axis 0 to `size` and give the middle `crop` rows of it, as float32.

    The filter is a triangle, as wide as the reduction lest it alias.
    """
    scale = len(image) / size
    support = max(scale, 1.0)
    offset = round((size - crop) / 2)
    result = np.empty((crop, *image.shape[1:]), np.float32)
    for row in range(crop):
        centre = (offset + row + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        taps = image[first : int(centre + support + 0.5)]
        distance = np.abs(np.arange(first, first + len(taps)) + 0.5 - centre)
        weights = np.maximum(1 - distance / support, 0)
        result[row] = np.tensordot((weights / weights.sum()).astype(np.float32), taps, 1)
    return result


def _main() -> None:
    """On the device: name what the images given show; without any, test the bundle."""
    try:
        net = load(Path(__file__).resolve().parent)
        for image in sys.argv[1:]:
            for index, label, share in net.classify(image):
                print(f"{image}\t{index}\t{label or ''}\t{share:.4f}")  # noqa: T201
        if not sys.argv[1:]:
            print(f"passed; relative errors {net.self_test()}")  # noqa: T201
    except DeviceError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _main()
