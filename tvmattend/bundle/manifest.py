# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what a bundle is, what it was made from, and the hash of every file in it.

The schema is these dataclasses. Reading is strict: a field that is missing, unknown or of another
type is an error, because a bundle that is half understood runs wrongly. A change of the fields is
a new `SCHEMA`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from tvmattend.bundle.fields import (
    each,
    malformed,
    number,
    numbers,
    one_of,
    only,
    optional,
    take,
    whole,
    words,
)
from tvmattend.bundle.kernels import KernelLaunch, KernelSchedule, RecordCounts
from tvmattend.errors import BundleError
from tvmattend.preprocessing import Preprocessing
from tvmattend.runtime.network import SCHEMA, TensorSpec
from tvmattend.target import TargetSpec

TOLERANCE = 1e-4
FORMATS = ("vm", "standalone")


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size: int

    @classmethod
    def from_json(cls, data: Any, where: str) -> "FileEntry":
        """Read one entry of `files`."""
        only(data, cls, where)
        sha256 = take(data, "sha256", str, where)
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise malformed(f"{where}.sha256", "64 hexadecimal digits")
        return cls(sha256, whole(data, "size", where, least=0))


@dataclass(frozen=True)
class Versions:
    """Of the packages that made the bundle; `tvm` and `tvm_ffi` are those that it runs with."""

    tvmattend: str
    tvm: str
    tvm_ffi: str

    @classmethod
    def from_json(cls, data: Any, where: str = "versions") -> "Versions":
        """Read `versions`."""
        only(data, cls, where)
        return cls(*(take(data, item.name, str, where) for item in fields(cls)))


@dataclass(frozen=True)
class Weights:
    """Where the weights come from, in words, with the file's SHA-256 or the seed."""

    source: str
    sha256: str | None = None
    seed: int | None = None

    @classmethod
    def from_json(cls, data: Any, where: str = "weights") -> "Weights":
        """Read `weights`."""
        only(data, cls, where)
        return cls(
            take(data, "source", str, where),
            take(data, "sha256", (str, type(None)), where),
            take(data, "seed", (int, type(None)), where),
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
        cpu_flags: What `/proc/cpuinfo` of the device must list.
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
        kernels: Each distinct kernel and its schedule, in the order of its first call.
        launches: The kernel calls of an inference, in order.
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
    cpu_flags: tuple[str, ...]
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
    launches: tuple[KernelLaunch, ...] = ()
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
        schema = whole(data, "schema", "manifest")
        if schema > SCHEMA:
            raise BundleError(
                f"manifest.json is of schema {schema}; this tvmattend knows {SCHEMA}",
                "use a newer tvmattend",
            )
        where = "manifest"
        only(data, cls, where)
        manifest = cls(
            model=take(data, "model", str, where),
            classes=optional(data, "classes", lambda _: whole(data, "classes", where)),
            labels=optional(data, "labels", lambda value: words(value, "labels")),
            inputs=_specs(data, "inputs"),
            outputs=_specs(data, "outputs"),
            preprocessing=optional(data, "preprocessing", _preprocessing),
            weights=Weights.from_json(data["weights"]),
            target=_target(data["target"]),
            cpu_flags=words(data["cpu_flags"], "cpu_flags"),
            threads=whole(data, "threads", where),
            versions=Versions.from_json(data["versions"]),
            revision=take(data, "revision", (str, type(None)), where),
            records=RecordCounts.from_json(data["records"]),
            fusion=take(data, "fusion", dict, where),
            reference=take(data, "reference", str, where),
            tolerance=number(take(data, "tolerance", float, where), "tolerance"),
            format=one_of(data, "format", FORMATS),
            library=take(data, "library", str, where),
            libc=one_of(data, "libc", ("glibc", "musl")),
            kernels=each(data, "kernels", KernelSchedule.from_json),
            launches=each(data, "launches", KernelLaunch.from_json),
            files={
                name: FileEntry.from_json(entry, f"files.{name}")
                for name, entry in take(data, "files", dict, where).items()
            },
            schema=schema,
        )
        manifest._check()
        return manifest

    def _check(self) -> None:
        if not 0 < self.tolerance < 1:
            raise malformed("tolerance", "between 0 and 1")
        if self.labels is not None and len(self.labels) != self.classes:
            raise malformed("labels", f"one for each of {self.classes} classes")
        known = {kernel.key for kernel in self.kernels}
        for place, launch in enumerate(self.launches):
            if launch.key not in known:
                raise malformed(f"launches[{place}].key", "a key of `kernels`")
        loader = ("tvmattend_standalone.py",) if self.format == "standalone" else ()
        for name in (self.library, "golden.npz", "tvmattend_runtime.py", *loader):
            if name not in self.files:
                raise malformed("files", f"with an entry for {name}")


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


def _specs(data: Any, name: str) -> tuple[TensorSpec, ...]:
    specs = each(data, name, _spec)
    if not specs:
        raise malformed(name, "a list of one or more")
    return specs


def _spec(entry: Any, where: str) -> TensorSpec:
    shape = take(entry, "shape", list, where)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape):
        raise malformed(f"{where}.shape", "a list of positive integers")
    texts = [take(entry, key, str, where) for key in ("name", "dtype", "layout")]
    try:
        known = np.dtype(texts[1]).kind in "fiub"
    except TypeError:
        known = False
    if not known:
        raise malformed(f"{where}.dtype", "a number type of numpy")
    return TensorSpec(texts[0], tuple(shape), texts[1], texts[2])


def _target(data: Any) -> TargetSpec:
    """Read TVM's form of a target without TVM: running a bundle must not load a compiler."""
    triple = take(data, "mtriple", str, "target")
    if not re.fullmatch(r"(aarch64|x86_64)-linux-gnu", triple):
        raise malformed("target.mtriple", "aarch64-linux-gnu or x86_64-linux-gnu")
    flags = words(data.get("mattr", []), "target.mattr")
    cores = whole(data, "num-cores", "target")
    return TargetSpec(triple, take(data, "mcpu", str, "target"), flags, cores)


def _preprocessing(data: Any, where: str = "preprocessing") -> Preprocessing:
    """Read `preprocessing`; a recipe that the runtime does not know is an error."""
    only(data, Preprocessing, where)
    mean, std = (numbers(data, key, where) for key in ("mean", "std"))
    if 0.0 in std:
        raise malformed(f"{where}.std", "numbers other than 0")
    for key, known in (("colour", "RGB"), ("interpolation", "bilinear")):
        if take(data, key, str, where) != known:
            raise malformed(f"{where}.{key}", f"`{known}`")
    recipe = Preprocessing(
        whole(data, "resize", where), whole(data, "crop", where), mean, std,
        number(take(data, "scale", (int, float), where), f"{where}.scale"),
    )  # fmt: skip
    if recipe.crop > recipe.resize:
        raise malformed(f"{where}.crop", f"at most resize, {recipe.resize}")
    return recipe
