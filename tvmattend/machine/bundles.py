# SPDX-License-Identifier: Apache-2.0
"""The estimate of a bundle: one inference on the emulated board, by kernel."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvmattend.cache import Progress
from tvmattend.errors import BundleMismatchError
from tvmattend.machine.estimate import Estimate
from tvmattend.machine.guests import Script, estimate_script
from tvmattend.machine.libraries import estimate_library
from tvmattend.machine.parameters import CORE, OTHER_CORE, SHIPPED, Parameters
from tvmattend.runtime.network import check_files, read_manifest

RUNTIME = "(runtime)"
_GUEST = Path(__file__).with_name("bundle_guest.py")
_ENTRY = "__tvm_ffi_"


def estimate_bundle(
    bundle: Path,
    threads: int = 1,
    parameters: Parameters = SHIPPED,
    caches: bool = True,
    progress: Progress = lambda _: None,
) -> Estimate:
    """Estimate one inference; where caches are modelled, the one before it has warmed them.

    Args:
        bundle: A directory that `tvmattend build --target cortex-a72` made.
        threads: 1 to 4.
        parameters: Of the model.
        caches: Whether to model them; without, the estimate is quicker and too short.
        progress: Told about each step.

    Raises:
        BundleError: The bundle is missing or damaged.
        BundleMismatchError: It is for another core or C library.
        ToolMissingError: QEMU or LLVM's tools are not installed.
    """
    manifest = read_manifest(bundle)
    check_files(bundle, manifest["files"])
    core = manifest["target"].get("mcpu")
    if core != CORE:
        raise BundleMismatchError(
            f"the bundle is for {core}; {OTHER_CORE}",
            f"build it with --target {CORE}",
        )
    if manifest.get("libc") == "musl":
        raise BundleMismatchError(
            "the bundle is for musl, and the estimate's program has glibc",
            "estimate one that was built without --libc musl: its kernels are the same",
        )
    library = bundle.resolve() / manifest["library"]  # as the guest's map of memory has it
    modules = _modules(manifest)

    def group(path: str, function: str | None) -> str | None:
        if function is None or path != str(library):
            # What other threads do outside kernels is waiting; the first thread's is what it costs.
            return RUNTIME
        # A standalone library cuts a fused kernel into steps: dcac_0, dcac_1, ...
        whole, _, step = function.rpartition("_")
        name = whole if step.isdecimal() and whole in modules else function
        return name if name in modules or not modules else RUNTIME

    # A standalone library has its kernels' names in its symbol table, behind its own prefix.
    vm = manifest["format"] == "vm"
    own = _ENTRY if vm else f"{library.stem.removeprefix('lib')}_kernel_"
    progress(f"one inference of {manifest['model']} under QEMU, {threads} thread(s)")
    if vm:
        script = Script(_GUEST, [str(bundle.absolute()), str(threads), str(int(caches))])
        found = estimate_script(
            script, threads, parameters, caches, group, {str(library): own}, progress
        )
    else:
        found = estimate_library(
            bundle, manifest, threads, parameters, caches, group, {str(library): own}, progress
        )
    launches = Counter(launch["name"] for launch in manifest.get("launches", ()))
    parts = tuple(
        replace(
            part,
            modules=modules.get(part.name, ()),
            calls=launches.get(part.name, part.calls),
        )
        for part in found.parts
    )
    return replace(found, parts=parts)


def _modules(manifest: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """PyTorch modules of each kernel, of all its calls, in order."""
    modules: dict[str, tuple[str, ...]] = {}
    for launch in manifest.get("launches", ()):
        known = modules.get(launch["name"], ())
        modules[launch["name"]] = (*known, *(m for m in launch["modules"] if m not in known))
    return modules
