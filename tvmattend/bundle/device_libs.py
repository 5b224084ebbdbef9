# SPDX-License-Identifier: Apache-2.0
"""TVM's runtime for the target, as its own wheels ship it, with their licences.

A Relax executable needs `libtvm_runtime.so` (the virtual machine lives there) and
`libtvm_ffi.so`. `libtvm_runtime_extra.so` holds external kernels - sorting, random numbers - and
goes along only if the network calls one. For the host's architecture the installed packages are
copied; for another one the wheels of the same versions are fetched once into the cache. The
libraries are not stripped: 5 MB, and byte for byte what was published.
"""

import importlib.util
import re
import shutil
import struct
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from tvmattend.cache import Progress, prepared
from tvmattend.device.wheels import download_wheels
from tvmattend.errors import BundleError, ToolMissingError
from tvmattend.target import TargetSpec

RUNTIME = "libtvm_runtime.so"
EXTRA = "libtvm_runtime_extra.so"
FFI = "libtvm_ffi.so"

# Path in the bundle's lib/ -> distribution and path in its wheel.
_MEMBERS = {
    RUNTIME: ("apache-tvm", f"tvm/lib/{RUNTIME}"),
    EXTRA: ("apache-tvm", f"tvm/lib/{EXTRA}"),
    FFI: ("apache-tvm-ffi", f"tvm_ffi/lib/{FFI}"),
    "licenses/LICENSE.tvm": ("apache-tvm", "tvm/LICENSE"),
    "licenses/NOTICE.tvm": ("apache-tvm", "tvm/NOTICE"),
    "licenses/LICENSE.tvm-ffi": ("apache-tvm-ffi", "*.dist-info/licenses/LICENSE"),
    "licenses/NOTICE.tvm-ffi": ("apache-tvm-ffi", "*.dist-info/licenses/NOTICE"),
    "licenses/LICENSE.libbacktrace": ("apache-tvm-ffi", "tvm_ffi/3rdparty/libbacktrace/LICENSE"),
}

# One interpreter for all hosts: the ffi wheel is built once for each, and the same bundle should
# come out of every one.
_PYTHON = "3.11"
# Of the cache, for the wheels and what is kept of them.
_FETCH_BYTES = 160 << 20
_ELF_MACHINES = {183: "aarch64", 62: "x86_64"}


def device_libraries(
    target: TargetSpec, library: Path, progress: Progress = lambda _: None
) -> dict[str, Path]:
    """Find what goes into a bundle's `lib/`.

    Args:
        target: Decides the architecture.
        library: The compiled network, which decides whether external kernels are needed.
        progress: Told, in a line, before something is downloaded.

    Returns:
        Path below `lib/` -> file to copy.

    Raises:
        ToolMissingError: A package or pip is not installed, or the download failed.
        StorageError: The cache cannot be written.
    """
    found = _installed() if target.arch == _installed_arch() else _fetched(target.arch, progress)
    names = set(found) if needs_extra(library, found[EXTRA]) else set(found) - {EXTRA}
    return {name: found[name] for name in sorted(names)}


def package_versions() -> tuple[str, str]:
    """Give the installed versions of `apache-tvm` and `apache-tvm-ffi`.

    Raises:
        ToolMissingError: One is not installed.
    """
    return _version("apache-tvm"), _version("apache-tvm-ffi")


def elf_arch(path: Path) -> str:
    """Give the architecture of a shared library.

    Raises:
        BundleError: It is not a 64-bit ELF file of an architecture that we know.
    """
    with path.open("rb") as stream:
        head = stream.read(20)
    machine = struct.unpack_from("<H", head, 18)[0] if len(head) == 20 else 0
    if head[:5] != b"\x7fELF\x02" or machine not in _ELF_MACHINES:
        raise BundleError(
            f"{path} is not a shared library for aarch64 or x86-64", "build the bundle again"
        )
    return _ELF_MACHINES[machine]


def needs_extra(library: Path, extra: Path) -> bool:
    """Whether a library names a function that `libtvm_runtime_extra.so` registers.

    Relax calls external kernels by their registered name, which stands in the data of both.
    """
    names = set(re.findall(rb"tvm\.contrib\.\w+\.\w+", extra.read_bytes()))
    called = library.read_bytes()
    return any(name in called for name in names)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise ToolMissingError(
            f"the package {distribution} is not installed", f"pip install {distribution}"
        ) from error


def _installed_arch() -> str:
    return elf_arch(_package_root("tvm") / "lib" / RUNTIME)


def _package_root(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ToolMissingError(f"the package {package} is not installed", "pip install tvmattend")
    return Path(spec.submodule_search_locations[0])


def _installed() -> dict[str, Path]:
    found = {}
    for name, (distribution, member) in _MEMBERS.items():
        root = _package_root("tvm" if distribution == "apache-tvm" else "tvm_ffi").parent
        paths = sorted(root.glob(_exact(distribution, member)))
        if not paths:
            raise ToolMissingError(
                f"the installed {distribution} {_version(distribution)} has no {member}",
                f"install its wheel: pip install --force-reinstall {distribution}",
            )
        found[name] = paths[0]
    return found


def _exact(distribution: str, member: str) -> str:
    stem = f"{distribution.replace('-', '_')}-{_version(distribution)}"
    return member.replace("*", stem)


def _fetched(arch: str, progress: Progress) -> dict[str, Path]:
    versions = dict(zip(("apache-tvm", "apache-tvm-ffi"), package_versions(), strict=True))

    def build(place: Path) -> None:
        progress(f"fetching TVM's runtime for {arch} (100 MB, once)")
        with tempfile.TemporaryDirectory(prefix=".wheels-", dir=place.parent) as name:
            pins = [f"{distribution}=={version}" for distribution, version in versions.items()]
            wheels = download_wheels(pins, Path(name), arch, _PYTHON)
            for distribution, wheel in zip(versions, wheels, strict=True):
                _unpack(wheel, distribution, place)
        for name in (RUNTIME, EXTRA, FFI):
            if elf_arch(place / name) != arch:
                raise ToolMissingError(
                    f"the wheel's {name} is not for {arch}", "look into the index that pip uses"
                )

    place = prepared(
        f"runtime-{arch}", {**versions, "python": _PYTHON}, build, progress, _FETCH_BYTES
    )
    return {name: place / name for name in _MEMBERS}


def _unpack(wheel: Path, distribution: str, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, (owner, member) in _MEMBERS.items():
            if owner == distribution:
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(_exact(owner, member)) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
