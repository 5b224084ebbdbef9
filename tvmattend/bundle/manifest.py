# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what a bundle is, what it was made from, and the hash of every file in it.

The schema is these dataclasses. Reading is strict: a field that is missing, unknown or of another
type is an error, because a bundle that is half understood runs wrongly. A change of the fields is
a new `SCHEMA`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from tvmattend.errors import BundleError
from tvmattend.runtime.network import SCHEMA, TensorSpec
from tvmattend.target import TargetSpec

TOLERANCE = 1e-4
FORMATS = ("vm", "standalone")
_REMEDY = "copy or build the bundle again"

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size: int

    @classmethod
    def from_json(cls, data: Any, where: str) -> "FileEntry":
        """Read one entry of `files`."""
        _only(data, cls, where)
        sha256 = _take(data, "sha256", str, where)
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise _malformed(f"{where}.sha256", "64 hexadecimal digits")
        return cls(sha256, _whole(data, "size", where, least=0))


@dataclass(frozen=True)
class Preprocessing:
    """From a photograph to the input.

    The shorter side is resized to `resize`, the middle `crop` x `crop` cut out, then
    `(pixel * scale - mean) / std` a channel, with pixels 0-255.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    colour: str = "RGB"
    interpolation: str = "bilinear"

    @classmethod
    def from_json(cls, data: Any, where: str = "preprocessing") -> "Preprocessing":
        """Read `preprocessing`; a recipe that the runtime does not know is an error."""
        _only(data, cls, where)
        mean, std = (_numbers(data, key, where) for key in ("mean", "std"))
        if 0.0 in std:
            raise _malformed(f"{where}.std", "numbers other than 0")
        for key, known in (("colour", "RGB"), ("interpolation", "bilinear")):
            if _take(data, key, str, where) != known:
                raise _malformed(f"{where}.{key}", f"`{known}`")
        recipe = cls(
            _whole(data, "resize", where), _whole(data, "crop", where), mean, std,
            _number(_take(data, "scale", (int, float), where), f"{where}.scale"),
        )  # fmt: skip
        if recipe.crop > recipe.resize:
            raise _malformed(f"{where}.crop", f"at most resize, {recipe.resize}")
        return recipe


@dataclass(frozen=True)
class RecordCounts:
    """Kernels of the library by where their schedule comes from.

    Attributes:
        measured: Tuned by time taken on the target's silicon.
        estimated: Tuned by a model of the machine.
        emulated: Tuned on an emulated board, whose times say nothing about silicon.
        default: No record: scheduled by rule.
    """

    measured: int = 0
    estimated: int = 0
    emulated: int = 0
    default: int = 0

    @classmethod
    def from_json(cls, data: Any, where: str = "records") -> "RecordCounts":
        """Read `records`."""
        _only(data, cls, where)
        return cls(*(_whole(data, item.name, where, least=0) for item in fields(cls)))


@dataclass(frozen=True)
class KernelSchedule:
    """Which schedule one kernel of the library was compiled with.

    Fields as in `tvmattend.codegen.schedule.ScheduledKernel`, whose plain data this is.
    """

    name: str
    key: str
    family: str
    calls: int
    origin: str
    threads: int | None
    point: Mapping[str, int]

    @classmethod
    def from_json(cls, data: Any, where: str) -> "KernelSchedule":
        """Read one entry of `kernels`."""
        _only(data, cls, where)
        origin = _take(data, "origin", str, where)
        if origin not in {item.name for item in fields(RecordCounts)}:
            raise _malformed(f"{where}.origin", "measured, estimated, emulated or default")
        if (data["threads"] is None) != (origin == "default"):
            raise _malformed(f"{where}.threads", "the record's threads, or null without a record")
        point = _take(data, "point", dict, where)
        name, key, family = (_take(data, word, str, where) for word in ("name", "key", "family"))
        threads = _optional(data, "threads", lambda _: _whole(data, "threads", where))
        knobs = {knob: _take(point, knob, int, f"{where}.point") for knob in point}
        return cls(name, key, family, _whole(data, "calls", where), origin, threads, knobs)


@dataclass(frozen=True)
class Versions:
    """Of the packages that made the bundle; `tvm` and `tvm_ffi` are those that it runs with."""

    tvmattend: str
    tvm: str
    tvm_ffi: str

    @classmethod
    def from_json(cls, data: Any, where: str = "versions") -> "Versions":
        """Read `versions`."""
        _only(data, cls, where)
        return cls(*(_take(data, item.name, str, where) for item in fields(cls)))


@dataclass(frozen=True)
class Weights:
    """Where the weights come from, in words, with the file's SHA-256 or the seed."""

    source: str
    sha256: str | None = None
    seed: int | None = None

    @classmethod
    def from_json(cls, data: Any, where: str = "weights") -> "Weights":
        """Read `weights`."""
        _only(data, cls, where)
        return cls(
            _take(data, "source", str, where),
            _take(data, "sha256", (str, type(None)), where),
            _take(data, "seed", (int, type(None)), where),
        )


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself.

    Attributes:
        model: Name of the network.
        classes: Columns of the first output if that is a table of scores, else None.
        labels: A name for each class, or None.
        inputs: In the order of the call.
        outputs: In the order of the result.
        preprocessing: None where nobody said what an image becomes.
        weights: Their origin.
        target: The machine that the library was compiled for.
        threads: Threads that it was scheduled for.
        versions: Of what made it.
        revision: Git revision that tvmattend ran or was installed from, or None if unknown.
        records: Where the schedules come from.
        fusion: The fusion report; its form is the transform room's.
        reference: What computed the golden outputs, with its version.
        tolerance: Greatest relative error of a golden vector, max|y - ref| / max|ref|.
        format: `vm`: a Relax executable for TVM's virtual machine; `standalone`: a C library.
        library: File of the compiled network.
        libc: C library of the device: `glibc` (2.28 or later) or `musl`.
        kernels: The schedule of each distinct kernel, in the order of its first call.
        files: Every file of the bundle but manifest.json, by its path with `/`.
        schema: Of this file.
    """

    model: str
    classes: int | None
    labels: tuple[str, ...] | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None
    weights: Weights
    target: TargetSpec
    threads: int
    versions: Versions
    revision: str | None
    records: RecordCounts
    fusion: Mapping[str, Any]
    reference: str
    tolerance: float = TOLERANCE
    format: str = "vm"
    library: str = "model.so"
    libc: str = "glibc"
    kernels: tuple[KernelSchedule, ...] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Give plain data, the schema's number first and the files last."""
        data: dict[str, Any] = {"schema": self.schema}
        for item in fields(self):
            if item.name != "schema":
                data[item.name] = _plain(getattr(self, item.name))
        data["files"] = data.pop("files")
        return data

    def dumps(self) -> str:
        """Give the text of manifest.json."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: Any) -> "Manifest":
        """Read a manifest.

        Raises:
            BundleError: It is not one of this schema; the message names the field.
        """
        schema = _whole(data, "schema", "manifest")
        if schema != SCHEMA:
            raise BundleError(
                f"manifest.json is of schema {schema}; this tvmattend knows {SCHEMA}",
                "use a newer tvmattend" if schema > SCHEMA else _REMEDY,
            )
        where = "manifest"
        _only(data, cls, where)
        manifest = cls(
            model=_take(data, "model", str, where),
            classes=_optional(data, "classes", lambda _: _whole(data, "classes", where)),
            labels=_optional(data, "labels", lambda value: _words(value, "labels")),
            inputs=_specs(data, "inputs"),
            outputs=_specs(data, "outputs"),
            preprocessing=_optional(data, "preprocessing", Preprocessing.from_json),
            weights=Weights.from_json(data["weights"]),
            target=_target(data["target"]),
            threads=_whole(data, "threads", where),
            versions=Versions.from_json(data["versions"]),
            revision=_take(data, "revision", (str, type(None)), where),
            records=RecordCounts.from_json(data["records"]),
            fusion=_take(data, "fusion", dict, where),
            reference=_take(data, "reference", str, where),
            tolerance=_number(_take(data, "tolerance", float, where), "tolerance"),
            format=_one_of(data, "format", FORMATS),
            library=_take(data, "library", str, where),
            libc=_one_of(data, "libc", ("glibc", "musl")),
            kernels=_each(data, "kernels", KernelSchedule.from_json),
            files={
                name: FileEntry.from_json(entry, f"files.{name}")
                for name, entry in _take(data, "files", dict, where).items()
            },
            schema=schema,
        )
        manifest._check()
        return manifest

    def _check(self) -> None:
        if not 0 < self.tolerance < 1:
            raise _malformed("tolerance", "between 0 and 1")
        if self.labels is not None and len(self.labels) != self.classes:
            raise _malformed("labels", f"one for each of {self.classes} classes")
        loader = ("tvmattend_standalone.py",) if self.format == "standalone" else ()
        for name in (self.library, "golden.npz", "tvmattend_runtime.py", *loader):
            if name not in self.files:
                raise _malformed("files", f"with an entry for {name}")


def _plain(value: Any) -> Any:
    if isinstance(value, TargetSpec):
        return value.to_json()
    if isinstance(value, TensorSpec):
        return {**value._asdict(), "shape": list(value.shape)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    return value


def _malformed(where: str, wanted: str) -> BundleError:
    return BundleError(f"manifest.json: `{where}` is not {wanted}", _REMEDY)


def _only(data: Any, cls: type, where: str) -> None:
    """Refuse anything but an object with exactly the fields of a dataclass."""
    if not isinstance(data, dict):
        raise _malformed(where, "an object")
    names = {item.name for item in fields(cls)}
    for name in sorted(names ^ set(data)):
        reason = "is missing" if name in names else "is unknown"
        raise BundleError(f"manifest.json: `{where}.{name}` {reason}", _REMEDY)


def _take(data: Any, name: str, kind: type[_Value] | tuple[type, ...], where: str) -> Any:
    if not isinstance(data, dict) or name not in data:
        raise BundleError(f"manifest.json: `{where}.{name}` is missing", _REMEDY)
    value = data[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise _malformed(f"{where}.{name}", names)
    return value


def _one_of(data: Any, name: str, known: tuple[str, ...]) -> str:
    value = str(_take(data, name, str, "manifest"))
    if value not in known:
        raise _malformed(name, " or ".join(known))
    return value


def _whole(data: Any, name: str, where: str, least: int = 1) -> int:
    value = _take(data, name, int, where)
    if value < least:
        raise _malformed(f"{where}.{name}", f"at least {least}")
    return int(value)


def _optional(data: Any, name: str, read: Callable[[Any], _Value]) -> _Value | None:
    return None if data[name] is None else read(data[name])


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise _malformed(where, "a list of strings")
    return tuple(value)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise _malformed(where, "a number")
    return float(value)


def _numbers(data: Any, name: str, where: str) -> tuple[float, float, float]:
    values = _take(data, name, list, where)
    if len(values) != 3:
        raise _malformed(f"{where}.{name}", "three numbers")
    red, green, blue = (_number(value, f"{where}.{name}") for value in values)
    return red, green, blue


def _each(data: Any, name: str, read: Callable[[Any, str], _Value]) -> tuple[_Value, ...]:
    entries = _take(data, name, list, "manifest")
    return tuple(read(entry, f"{name}[{place}]") for place, entry in enumerate(entries))


def _specs(data: Any, name: str) -> tuple[TensorSpec, ...]:
    specs = _each(data, name, _spec)
    if not specs:
        raise _malformed(name, "a list of one or more")
    return specs


def _spec(entry: Any, where: str) -> TensorSpec:
    shape = _take(entry, "shape", list, where)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape):
        raise _malformed(f"{where}.shape", "a list of positive integers")
    texts = [_take(entry, key, str, where) for key in ("name", "dtype", "layout")]
    try:
        known = np.dtype(texts[1]).kind in "fiub"
    except TypeError:
        known = False
    if not known:
        raise _malformed(f"{where}.dtype", "a number type of numpy")
    return TensorSpec(texts[0], tuple(shape), texts[1], texts[2])


def _target(data: Any) -> TargetSpec:
    """Read TVM's form of a target without TVM: running a bundle must not load a compiler."""
    triple = _take(data, "mtriple", str, "target")
    if not re.fullmatch(r"(aarch64|x86_64)-linux-gnu", triple):
        raise _malformed("target.mtriple", "aarch64-linux-gnu or x86_64-linux-gnu")
    flags = _words(data.get("mattr", []), "target.mattr")
    cores = _whole(data, "num-cores", "target")
    return TargetSpec(triple, _take(data, "mcpu", str, "target"), flags, cores)
