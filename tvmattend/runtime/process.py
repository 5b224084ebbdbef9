# SPDX-License-Identifier: Apache-2.0
"""The machine, and TVM's runtime in this process."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
import sys
from pathlib import Path
from typing import Any

from tvmattend.runtime.contents import Code, file_sha256
from tvmattend.runtime.faults import BundleMismatchError, ToolMissingError, load_hint

# TVM's libraries, each with a function that it registers: two copies in a process abort it.
_LIBRARIES = {
    "libtvm_runtime.so": "runtime.NumThreads",
    "libtvm_runtime_extra.so": "tvm.contrib.sort.argsort",
}
_loaded: dict[str, tuple[str, str]] = {}  # library -> SHA-256 and version of what is loaded


def check_machine(target: dict[str, Any], cpu_flags: list[str]) -> None:
    """Refuse a target of another architecture, or code that would be an illegal instruction."""
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
    missing = set(cpu_flags) - set(flags[1].split() if flags else ())
    if missing and flags and (wanted == "x86_64") == flags[0].startswith("flags"):
        lacks = ", ".join(sorted(missing))
        raise BundleMismatchError(f"the bundle is for {cpu}; this CPU lacks {lacks}", hint)


def load_runtime(code: Code, manifest: dict[str, Any]) -> Any:
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
            f"{error}; this is {has}",
            load_hint(error, "Linux with glibc 2.28 or later is needed"),
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
