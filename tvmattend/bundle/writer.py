# SPDX-License-Identifier: Apache-2.0
"""Write a bundle: all of it or nothing.

Everything is written and synced in a directory beside the destination, which then takes its
place in one step. A bundle that is replaced stays whole until that step.
"""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tvmattend import __version__
from tvmattend.bundle import device_libs
from tvmattend.bundle.guide import device_guide
from tvmattend.bundle.kernels import KernelLaunch, KernelSchedule, RecordCounts
from tvmattend.bundle.manifest import (
    TOLERANCE,
    FileEntry,
    Manifest,
    Versions,
    Weights,
)
from tvmattend.bundle.wrapper import WRAPPER, wrapper_source
from tvmattend.cache import Progress
from tvmattend.errors import BundleError, OutputExistsError, StorageError
from tvmattend.preprocessing import Preprocessing
from tvmattend.runtime import network, signature, standalone
from tvmattend.target import TargetSpec

LOADER = "tvmattend_standalone.py"
SIGNATURE_CHECK = "tvmattend_signature.py"

Arrays = Sequence["np.ndarray[Any, Any]"]


class Spec(Protocol):
    """Any description of an input or output that has these four."""

    @property
    def name(self) -> str:
        """Of the tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Static, in elements."""

    @property
    def dtype(self) -> str:
        """NumPy's name."""

    @property
    def layout(self) -> str:
        """E.g. NCHW; may be empty."""


@dataclass(frozen=True)
class BundleContents:
    """What a build hands over.

    Attributes:
        library: The linked library, with the weights inside: in the format `vm` with a Relax
            function `main`, in the format `standalone` as `tvmattend.standalone` writes it.
        target: What it was compiled for.
        model: Name of the network.
        inputs: In the order of `main`'s parameters.
        outputs: One, or the fields of the tuple that `main` returns.
        golden: Pairs (inputs, reference outputs), one or more.
        reference: What computed the reference outputs, with its version.
        weights: Where the weights come from.
        records: Where the schedules come from.
        classes: Columns of the first output if it is a table of scores.
        labels: A name for each class.
        preprocessing: From an image to the input.
        fusion: The fusion report as plain data.
        tolerance: Greatest relative error of a golden vector.
        format: `vm` or `standalone`.
        libc: C library of the device, `glibc` or `musl`.
        kernels: Each distinct kernel and its schedule.
        launches: The kernel calls of an inference, in order.
        extra: More files for the bundle's directory, under their own names.
    """

    library: Path
    target: TargetSpec
    model: str
    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    golden: Sequence[tuple[Arrays, Arrays]]
    reference: str
    weights: Weights
    records: RecordCounts
    classes: int | None = None
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    fusion: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    format: str = "vm"
    libc: str = "glibc"
    kernels: tuple[KernelSchedule, ...] = ()
    launches: tuple[KernelLaunch, ...] = ()
    extra: Sequence[Path] = ()

    @property
    def library_name(self) -> str:
        """The library's file name in the bundle; a standalone one has its API's name."""
        return "model.so" if self.format == "vm" else self.library.name


def check_output(directory: str | Path, *, force: bool) -> None:
    """Refuse a destination before any work is done for it.

    Args:
        directory: Where the bundle is to be.
        force: Whether a bundle that is there may be replaced. Nothing else ever is.

    Raises:
        OutputExistsError: Something is there that must not be replaced.
        StorageError: Nothing can be written there.
    """
    place = Path(directory)
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise OutputExistsError(
            f"{place} is there and is not a directory", "choose another --output"
        )
    try:
        entries = sorted(place.iterdir()) if place.is_dir() else []
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror}", "choose another --output") from error
    if entries:
        _check_replaceable(place, force)
    parent = next(folder for folder in place.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"{parent} cannot be written to", "choose another --output")


def _check_replaceable(place: Path, force: bool) -> None:
    try:
        files = network.read_manifest(place)["files"]
    except network.DeviceError:
        raise OutputExistsError(
            f"{place} is there, is not empty and is not a bundle",
            "choose another --output; --force replaces bundles only",
        ) from None
    known = {"manifest.json", signature.FILE, *files}
    strangers = [
        found.relative_to(place).as_posix()
        for found in sorted(place.rglob("*"))
        if "__pycache__" not in found.relative_to(place).parts
        and (found.is_symlink() or not found.is_dir())
        and found.relative_to(place).as_posix() not in known
    ]
    if strangers:
        raise OutputExistsError(
            f"{place} holds a bundle and files that are not its own: {', '.join(strangers[:3])}",
            "move them away, or choose another --output",
        )
    if not force:
        raise OutputExistsError(f"{place} is there already", "give --force to replace it")


def write_bundle(
    directory: str | Path,
    contents: BundleContents,
    *,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Path:
    """Write a bundle and give its directory.

    Args:
        directory: Where it is to be; parents are created.
        contents: What the build made.
        force: Replace a bundle that is there.
        progress: Told what takes long.

    Raises:
        OutputExistsError: Something is there that must not be replaced.
        StorageError: No space, no permission; nothing is left behind.
        ToolMissingError: The target's runtime cannot be had.
        BundleError: The library is for another architecture than the target.
        ValueError: Golden vectors that do not fit the specs.
    """
    place = Path(directory).absolute()
    check_output(place, force=force)
    _check_contents(contents)
    libraries: Mapping[str, Path] = {}
    if contents.format == "vm":  # the other needs none of TVM
        libraries = device_libs.device_libraries(contents.target, contents.library, progress)
    staging = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")
        staging.mkdir()
        _fill(staging, contents, libraries)
        _sync(staging)
        old = _publish(staging, place)
        staging = old
        _sync_directory(place.parent)
    except OSError as error:
        raise _storage_error(error, place) from error
    finally:
        # Half a bundle if something failed; the replaced one if not.
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return Path(directory)


def source_revision() -> str | None:
    """Give the git revision of this tvmattend, or None if nobody knows it.

    A checkout asks git; what was installed from one has the file that `hatch_build.py` wrote.
    """
    package = Path(__file__).resolve().parents[1]
    root = package.parent
    if not (root / ".git").exists():
        stamp = package / "_revision.txt"
        return stamp.read_text(encoding="utf-8").strip() or None if stamp.is_file() else None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
        done = subprocess.run(
            [*command, "--exclude=*"], check=False, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git on this machine: a revision is a courtesy, not a need
    return done.stdout.strip() or None


def _check_contents(contents: BundleContents) -> None:
    arch = device_libs.elf_arch(contents.library)
    if arch != contents.target.arch:
        raise BundleError(
            f"{contents.library} is for {arch}, the target {contents.target.arch}",
            "check --cross-compiler",
        )
    if not contents.golden:
        raise ValueError("a bundle needs one golden vector or more")
    for pair in contents.golden:
        for specs, arrays in zip((contents.inputs, contents.outputs), pair, strict=True):
            for spec, array in zip(specs, arrays, strict=True):
                if array.shape != tuple(spec.shape) or array.dtype != np.dtype(spec.dtype):
                    raise ValueError(f"golden {array.dtype}{array.shape} does not fit {spec}")
                if not np.isfinite(array).all():
                    raise ValueError(f"golden values of `{spec.name}` are not finite")


def _fill(staging: Path, contents: BundleContents, libraries: Mapping[str, Path]) -> None:
    sources = {
        contents.library_name: contents.library,
        SIGNATURE_CHECK: Path(signature.__file__),
    }
    sources |= {path.name: path for path in contents.extra}
    sources |= {f"lib/{name}": path for name, path in libraries.items()}
    if contents.format == "standalone":
        sources[LOADER] = Path(standalone.__file__)
    for name, source in sources.items():
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (staging / WRAPPER).write_text(wrapper_source(), encoding="utf-8")
    _write_golden(staging / "golden.npz", contents.golden)
    manifest = _describe(contents)
    (staging / "README.md").write_text(device_guide(manifest), encoding="utf-8")
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    files = {
        path.relative_to(staging).as_posix(): FileEntry(
            network.file_sha256(path), path.stat().st_size
        )
        for path in paths
    }
    text = replace(manifest, files=files).dumps()
    Manifest.from_json(json.loads(text))  # what cannot be read must not be written
    (staging / "manifest.json").write_text(text, encoding="utf-8")


def _describe(contents: BundleContents) -> Manifest:
    tvm, ffi = device_libs.package_versions()
    return Manifest(
        model=contents.model,
        classes=contents.classes,
        labels=contents.labels,
        inputs=_tensor_specs(contents.inputs),
        outputs=_tensor_specs(contents.outputs),
        preprocessing=contents.preprocessing,
        weights=contents.weights,
        target=contents.target,
        cpu_flags=contents.target.cpu_flags,
        threads=contents.target.num_cores,
        versions=Versions(__version__, tvm, ffi),
        revision=source_revision(),
        records=contents.records,
        fusion=contents.fusion,
        reference=contents.reference,
        tolerance=contents.tolerance,
        format=contents.format,
        library=contents.library_name,
        libc=contents.libc,
        kernels=contents.kernels,
        launches=contents.launches,
    )


def _tensor_specs(specs: Sequence[Spec]) -> tuple[network.TensorSpec, ...]:
    return tuple(
        network.TensorSpec(spec.name, tuple(spec.shape), spec.dtype, spec.layout) for spec in specs
    )


def _write_golden(path: Path, golden: Sequence[tuple[Arrays, Arrays]]) -> None:
    """Write `input0`, `input1`, ... and `output0`, ...: the vectors stacked on a new first axis."""
    columns: dict[str, Any] = {}
    for kind, side in (("input", 0), ("output", 1)):
        for place in range(len(golden[0][side])):
            columns[f"{kind}{place}"] = np.stack([pair[side][place] for pair in golden])
    np.savez_compressed(path, **columns)


def _sync(directory: Path) -> None:
    """Have the data on the disk before the name points to it."""
    for path in sorted(directory.rglob("*"), reverse=True):
        _sync_directory(path)
    _sync_directory(directory)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(staging: Path, place: Path) -> Path | None:
    """Put `staging` in the place of `place`; give where the replaced bundle is now, if any."""
    if not place.exists() or not any(place.iterdir()):
        staging.replace(place)
        return None
    if _exchange(staging, place):
        return staging
    # No exchange on this file system (NFS): two renames. Between them there is no bundle, never
    # half a one.
    old = staging.with_name(f"{staging.name}.old")
    place.replace(old)
    try:
        staging.replace(place)
    except BaseException:
        old.replace(place)
        raise
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; False if the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_current, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    done = libc.renameat2(
        at_current, os.fsencode(one), at_current, os.fsencode(other), ctypes.c_uint(exchange)
    )
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS}:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _storage_error(error: OSError, place: Path) -> StorageError:
    hint = "choose another --output"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = "free some space (a bundle takes its weights and 10 MB), or " + hint
    return StorageError(f"{place} could not be written: {error.strerror or error}", hint)
