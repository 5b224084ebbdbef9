# SPDX-License-Identifier: Apache-2.0
"""The verb `build`: import, lower, schedule, compile, link, and write the bundle."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmattend.bundle import (
    BundleContents,
    KernelLaunch,
    KernelSchedule,
    RecordCounts,
    Weights,
    check_output,
    write_bundle,
)
from tvmattend.bundle.manifest import FORMATS
from tvmattend.codegen.kernel_facts import KernelFact, kernel_facts
from tvmattend.codegen.link import link_command
from tvmattend.codegen.schedule import ScheduledKernel, schedule_kernels
from tvmattend.errors import InputError, StorageError, TargetError, compiling
from tvmattend.expressions import constant
from tvmattend.frontend import ModelRequest, import_model
from tvmattend.interrupts import kept
from tvmattend.preprocessing import Photographs
from tvmattend.standalone.names import check_prefix
from tvmattend.storage import directories_for, require_room, temporary_directory
from tvmattend.target import MOST_THREADS, TargetSpec
from tvmattend.text import how_many
from tvmattend.tuning.records import RecordSet, find_records

if TYPE_CHECKING:
    from tvmattend.frontend import ImportedModel
    from tvmattend.frontend.imported import Arrays
    from tvmattend.transform import FusionReport
    from tvmattend.transform.dump import Dump

Observer = Callable[[str], None]

ARTIFACTS = "artifacts"
# The same outputs bit for bit, not slower (benchmarks/formats.py), and the device needs
# no TVM. Whatever the importer takes has static shapes and kernels alone, hence a C form; `vm` is
# for who wants TVM's own runtime and tools on the board.
DEFAULT_FORMAT = "standalone"
GOLDEN_VECTORS = 2
# What a build takes at its fullest: without weights; of weights, in objects, archive, library and
# the bundle's copies (5 times for `attendnext`, 2 with `vm`); of TVM's runtime.
_LEAST_BYTES = 4 << 20
_COPIES = 6
_VM_BYTES = 8 << 20
# Of the greatest output: ten times what `--verify` lets two outputs differ by.
_TELLING = 1e-3


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        directory: The bundle.
        model: Name of the network.
        target: What it was built for.
        kernels: Where each kernel's schedule came from.
        records: The records that were looked at, in words.
        fusion: What was fused, and what that is worth.
        seconds: Wall time of each step, by name.
        notes: What a person should know: skipped record lines, records of other thread counts.
        format: Of the bundle, `vm` or `standalone`.
        library: What a standalone library needs, in words.
    """

    directory: Path
    model: str
    target: TargetSpec
    kernels: tuple[ScheduledKernel, ...]
    records: str
    fusion: "FusionReport"
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    format: str = DEFAULT_FORMAT
    library: str = ""

    def origins(self) -> dict[str, int]:
        """Number of kernels by the origin of their schedule."""
        counts = {"measured": 0, "estimated": 0, "emulated": 0, "default": 0}
        for kernel in self.kernels:
            counts[kernel.origin] += 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "bundle": str(self.directory),
            "model": self.model,
            "format": self.format,
            "target": self.target.to_json(),
            "kernels": len(self.kernels),
            "kernel_launches": sum(kernel.calls for kernel in self.kernels),
            "records": self.origins(),
            "fusion": self.fusion.to_json(),
            "notes": list(self.notes),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def bundle_directory(request: ModelRequest, target: TargetSpec) -> Path:
    """Where a bundle goes unless the user says otherwise."""
    return Path(ARTIFACTS) / f"{request.name}-{target.name}"


def build(
    request: ModelRequest | str,
    target: TargetSpec,
    *,
    output: Path | str | None = None,
    force: bool = False,
    tuning_records: Sequence[Path] = (),
    use_records: bool = True,
    cross_compiler: str | None = None,
    dump_ir: Path | None = None,
    fusion: bool = True,
    strict_fusion: bool = False,
    format: str = DEFAULT_FORMAT,  # noqa: A002  (the user's word for it)
    libc: str = "glibc",
    name: str | None = None,
    photographs: Photographs | None = None,
    labels: Sequence[str] | None = None,
    observer: Observer = lambda _: None,
) -> BuildReport:
    """Compile a network into a bundle.

    Args:
        request: What to import.
        target: The machine.
        output: The bundle's directory; None for `artifacts/<model>-<target>`.
        force: Replace a bundle that is there.
        tuning_records: Record files or directories to look at before the usual places.
        use_records: False builds every kernel with its default schedule.
        cross_compiler: A command to link with instead of Zig.
        dump_ir: Directory of its own for the IR after each phase, numbered.
        fusion: False leaves fusion to TVM's own FuseOps, for comparison.
        strict_fusion: A DC-AC block that is not fused is an error.
        format: `vm` for TVM's virtual machine, `standalone` for a C library.
        libc: C library of the device, `glibc` or (standalone only) `musl`.
        name: Of a standalone library and all its C names; None for the model's.
        photographs: How the network was trained on them, for `classify` and the C header; None for
            ImageNet's way with networks of the registry, and none with others.
        labels: A name for each class.
        observer: Called with one line before each step.

    Raises:
        TvmattendError: Any of its kinds; nothing is left half written.
    """
    request = ModelRequest.of(request)
    # Everything that can fail in a moment comes before the minutes of work.
    request.check()
    directory = bundle_directory(request, target) if output is None else Path(output)
    check_output(directory, force=force)
    if format not in FORMATS:
        raise InputError(f"there is no format `{format}`", f"give {' or '.join(FORMATS)}")
    if libc != "glibc" and format == "vm":
        raise TargetError(
            f"TVM's runtime needs glibc: there is none for {libc}", "build with --format standalone"
        )
    if format == "standalone" and target.num_cores > MOST_THREADS:
        raise TargetError(
            f"{target.num_cores} threads, but a standalone library has {MOST_THREADS} at most",
            f"give --threads {MOST_THREADS}, or build with --format vm",
        )
    if name is not None:
        check_prefix(name)
    link_command(target, cross_compiler)
    elsewhere = "free some space there, or choose another --output"
    require_room(directory, _LEAST_BYTES, elsewhere)
    require_room(temporary_directory(), _LEAST_BYTES, "free some space there, or set TMPDIR")
    records = find_records(request.name, target, tuning_records) if use_records else RecordSet()
    dump = None if dump_ir is None else _dump(dump_ir, directory)

    seconds: dict[str, float] = {}
    with _step("import", f"importing {request.model}", seconds, observer):
        imported = import_model(request)
        if photographs is not None:
            recipe = photographs.recipe(imported.inputs)
            imported = replace(imported, preprocessing=recipe)
        _check_labels(labels, imported.classes)
        from tvmattend.frontend.golden import golden_vectors

        golden = golden_vectors(imported, GOLDEN_VECTORS)
    from tvmattend.transform import lower_with_report

    what = (f"{imported.name} for {target.describe()}", "run again with --debug, and report it")
    with _step("lower", "choosing layouts and fusing", seconds, observer), compiling(*what):
        lowered = lower_with_report(imported.ir_module, target, dump, None if fusion else ())
        if strict_fusion:
            lowered.fusion.require_all_blocks()
    with _step("schedule", "scheduling the kernels", seconds, observer), compiling(*what):
        scheduled = schedule_kernels(lowered.mod, target, records)
        if dump is not None:
            dump.write("scheduled", scheduled.mod)
        report = lowered.fusion.of_scheduled(scheduled.mod)
        facts = kernel_facts(lowered.stages, imported.module_paths, target)
    require_room(directory, _room(scheduled.mod, format), elsewhere)
    with _scratch(directory) as scratch:
        with _step("compile", f"compiling for {target.describe()}", seconds, observer):
            if format == "vm":
                library, extra, said = _compile_vm(scheduled.mod, target, scratch, cross_compiler)
            else:
                library, extra, said = _compile_standalone(
                    scheduled.mod, imported, target, scratch, libc, cross_compiler, name
                )
        with _step("write", f"writing {directory}", seconds, observer):
            contents = _contents(imported, golden, library, target, scheduled.origins())
            contents = replace(
                contents,
                labels=None if labels is None else tuple(labels),
                format=format,
                libc=libc,
                extra=extra,
                fusion=report.to_json(),
                kernels=tuple(_kernels(scheduled.kernels, facts)),
                launches=tuple(KernelLaunch(f.name, f.key, f.modules) for f in facts),
            )
            notes = (*_notes(records, scheduled.kernels, target), *golden_notes(contents.golden))
            write_bundle(directory, contents, force=force, progress=observer)
    return BuildReport(
        directory,
        imported.name,
        target,
        scheduled.kernels,
        records.describe(),
        report,
        seconds,
        notes,
        format,
        said,
    )


def _room(mod: Any, format: str) -> int:  # noqa: A002  (the user's word for it)
    """Bytes that a build takes at its fullest, beside the bundle that it replaces."""
    from tvm import relax

    found: list[int] = []

    def count(expression: Any) -> None:
        value = constant(expression)
        if value is not None:
            found.append(value.nbytes)

    for function in mod.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, count)
    return _LEAST_BYTES + _COPIES * sum(found) + (_VM_BYTES if format == "vm" else 0)


def _dump(dump_ir: Path, output: Path) -> "Dump":
    """The directory of a dump, beside the bundle's.

    Raises:
        InputError: One lies in the other.
        StorageError: It is not free for a dump.
    """
    from tvmattend.transform.dump import Dump

    inner, outer = dump_ir.resolve(), output.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise InputError(
            f"--dump-ir {dump_ir} and the bundle, {output}, lie in each other",
            "name a directory beside it",
        )
    return Dump(dump_ir)


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A directory beside the bundle, on the file system whose room was checked; gone at the end.

    Raises:
        StorageError: It cannot be made.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(directories_for(directory.parent))
            made = tempfile.TemporaryDirectory(
                prefix=f".{directory.name}.build-", dir=directory.absolute().parent
            )
        except OSError as error:
            raise StorageError(
                f"{directory.parent} cannot be written to: {error.strerror}",
                "choose another --output",
            ) from error
        yield Path(stack.enter_context(made))


def _compile_vm(
    scheduled: Any, target: TargetSpec, scratch: Path, cross_compiler: str | None
) -> tuple[Path, tuple[Path, ...], str]:
    """Give the library, no more files, and nothing to be said of it."""
    from tvmattend.codegen.compile import compile_module, export

    library = scratch / "model.so"
    export(compile_module(scheduled, target), library, target, cross_compiler)
    return library, (), ""


def _compile_standalone(
    scheduled: Any,
    imported: "ImportedModel",
    target: TargetSpec,
    scratch: Path,
    libc: str,
    cross_compiler: str | None,
    name: str | None,
) -> tuple[Path, tuple[Path, ...], str]:
    """Give the shared library, what a C program wants beside it, and what it needs in words."""
    from tvmattend.standalone import emit

    files = emit(
        scheduled,
        imported,
        target,
        scratch,
        libc="musl" if libc == "musl" else "glibc",
        cross_compiler=cross_compiler,
        name=name,
    )
    threads = target.num_cores
    taken = files.arena_bytes + threads * files.thread_bytes
    said = (
        f"{files.shared.name} needs {', '.join(files.needed)}; with "
        f"{how_many(threads, 'thread')} an instance takes {taken / 1e6:.2f} MB"
    )
    return files.shared, files.paths[1:], said


def _check_labels(labels: Sequence[str] | None, classes: int | None) -> None:
    if labels is not None and len(labels) != classes:
        whose = "no table of scores" if classes is None else f"{classes} classes"
        raise InputError(
            f"{how_many(len(labels), 'label')}, but the network has {whose}",
            "give a name for each column of its first output, in order",
        )


def _contents(
    imported: "ImportedModel",
    golden: "Sequence[tuple[Arrays, Arrays]]",
    library: Path,
    target: TargetSpec,
    origins: dict[str, int],
) -> BundleContents:
    return BundleContents(
        library=library,
        target=target,
        model=imported.name,
        inputs=imported.inputs,
        outputs=imported.outputs,
        golden=golden,
        reference=imported.reference_name,
        weights=Weights(imported.weights, imported.weights_sha256, imported.seed),
        records=RecordCounts(**origins),
        classes=imported.classes,
        preprocessing=imported.preprocessing,
    )


def _kernels(
    scheduled: Sequence[ScheduledKernel], facts: Sequence[KernelFact]
) -> Iterator[KernelSchedule]:
    known = {fact.key: fact for fact in facts}
    for kernel in scheduled:
        fact = known[kernel.key]
        yield KernelSchedule(**vars(kernel), flops=fact.flops, moved=fact.moved)


def _notes(
    records: RecordSet, kernels: Sequence[ScheduledKernel], target: TargetSpec
) -> Iterator[str]:
    if records.faults:
        yield f"{len(records.faults)} unreadable record lines skipped, first {records.faults[0]}"
    others = sorted({k.threads for k in kernels if k.threads not in {None, target.num_cores}})
    for threads in others:
        count = sum(kernel.threads == threads for kernel in kernels)
        yield (
            f"{count} kernels use records made with {threads} threads: there are none for "
            f"{target.num_cores}"
        )
    if any(kernel.origin == "emulated" for kernel in kernels):
        yield "records of an emulated board prove the path; their times say nothing about silicon"
    plain = [kernel.name for kernel in kernels if kernel.family == "plain"]
    if plain:
        yield f"no design space knows {', '.join(plain)}: compiled as written, slow"


def golden_notes(golden: "Sequence[tuple[Arrays, Arrays]]") -> Iterator[str]:
    """Say so where the golden outputs would hardly show a wrong layer."""
    # Differences of truth values and of unsigned numbers are none.
    first, *others = ([array.astype("float64") for array in outputs] for _, outputs in golden)
    spread = max(
        float(np.abs(other - one).max() / (np.abs(one).max() or 1.0))
        for outputs in others
        for one, other in zip(first, outputs, strict=True)
    )
    if spread < _TELLING:
        yield (
            f"the outputs of the golden vectors differ by only {spread:.0e} of the greatest value: "
            "comparing them proves little; give trained weights"
        )


@contextmanager
def _step(name: str, text: str, seconds: dict[str, float], observer: Observer) -> Iterator[None]:
    observer(text)
    start = time.monotonic()
    with kept():
        yield
    seconds[name] = time.monotonic() - start
