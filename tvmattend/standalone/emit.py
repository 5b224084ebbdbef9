# SPDX-License-Identifier: Apache-2.0
"""Scheduled IRModule -> `lib<model>.so`, `lib<model>.a`, `<model>.h` and `<model>.hpp`."""

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmattend.errors import CompileError, compiling
from tvmattend.standalone import elf, source
from tvmattend.standalone.graph import Graph, read_graph
from tvmattend.standalone.kernels import Kernel, Signature, generate, split_kernels
from tvmattend.standalone.names import prefix_of
from tvmattend.standalone.plan import Plan, plan_memory
from tvmattend.standalone.toolchain import Libc, Toolchain
from tvmattend.target import TargetSpec

if TYPE_CHECKING:
    from tvmattend.frontend import ImportedModel

# What kernels may call: the C library's memory functions and the maths of libm.
_KERNEL_CALLS = re.compile(
    r"mem(cpy|move|set)|"
    r"(a?(sin|cos|tan)h?|atan2|erfc?|exp(2|10|m1)?|fabs|floor|ceil|round|roundeven|rint|nearbyint|"
    r"trunc|fma|fmod|fmin|fmax|hypot|ldexp|log(2|10|1p)?|nextafter|pow|sqrt|copysign)f?"
)
# Musl's is one library, which its own compilers call by the machine's name.
_SYSTEM_LIBRARIES = {
    "glibc": re.compile(r"lib(c|m)\.so\.6|libpthread\.so\.0"),
    "musl": re.compile(r"libc\.so|libc\.musl-\w+\.so\.1"),
}


@dataclass(frozen=True)
class StandaloneFiles:
    """What was written, and what it needs.

    Attributes:
        shared: `lib<prefix>.so`.
        static: `lib<prefix>.a`.
        header: `<prefix>.h`.
        cpp_header: `<prefix>.hpp`.
        prefix: Of every C name.
        system: C library that it is for, e.g. `glibc 2.28`.
        needed: Libraries that the shared one asks for.
        steps: Kernel calls in an inference.
        weight_bytes: Inside of either library.
        arena_bytes: Of an instance.
        thread_bytes: Of each of its threads, on top.
    """

    shared: Path
    static: Path
    header: Path
    cpp_header: Path
    prefix: str
    system: str
    needed: tuple[str, ...]
    steps: int
    weight_bytes: int
    arena_bytes: int
    thread_bytes: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return (self.shared, self.static, self.header, self.cpp_header)


def emit(
    scheduled: Any,
    imported: "ImportedModel",
    target: TargetSpec,
    directory: Path,
    *,
    libc: Libc = "glibc",
    cross_compiler: str | None = None,
    name: str | None = None,
    keep: Path | None = None,
) -> StandaloneFiles:
    """Write the standalone library of a network.

    Args:
        scheduled: IRModule whose every kernel is scheduled.
        imported: Says what the inputs, outputs and weights are.
        target: The machine.
        directory: Where the files go; it exists.
        libc: C library of the device.
        cross_compiler: A command to compile and link with instead of Zig.
        name: Instead of the model's name in C and in the files.
        keep: Directory for the generated C, the weights and the objects; None throws them away.

    Raises:
        CompileError: Something cannot be expressed in C, or a tool failed.
        ToolMissingError: A tool is not installed.
    """
    directory, keep = directory.resolve(), keep and keep.resolve()  # tools run elsewhere
    tools = Toolchain(target, libc, cross_compiler)
    tools.driver()  # before the minutes of work
    prefix = prefix_of(name or imported.name)
    graph = read_graph(scheduled)
    _check_interface(graph, imported)
    with compiling("the kernels as phases", "run again with --debug; `--format vm` may build it"):
        kernels = _split(scheduled, graph, prefix, target)
    plan = plan_memory(graph, kernels)
    weights = weight_block(graph, plan)
    about = source.Description(
        prefix=prefix,
        model=imported.name,
        target=f"{target.triple} {target.cpu}",
        threads=target.num_cores,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        inputs=imported.inputs,
        outputs=imported.outputs,
        recipe=imported.preprocessing,
    )
    shared, static = (directory / f"lib{prefix}{suffix}" for suffix in (".so", ".a"))
    header, cpp_header = (directory / f"{prefix}{suffix}" for suffix in (".h", ".hpp"))
    header.write_text(source.header(plan, graph, about), encoding="utf-8")
    cpp_header.write_text(source.cpp_header(about), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix=".tvmattend-c-", dir=directory) as scratch:
        place = Path(scratch) if keep is None else keep
        joined = _objects(place, tools, plan, graph, kernels, weights, about)
        tools.archive([joined], static)
        (place / "rpc-door.c").write_text(source.rpc_door(about), encoding="utf-8")
        tools.compile(place / "rpc-door.c", place / "rpc-door.o")
        tools.link([joined, place / "rpc-door.o"], shared)
    needed = _check_library(shared, header, libc)
    return StandaloneFiles(
        shared=shared,
        static=static,
        header=header,
        cpp_header=cpp_header,
        prefix=prefix,
        system=tools.system,
        needed=needed,
        steps=len(plan.steps),
        weight_bytes=plan.weight_bytes,
        arena_bytes=plan.arena_bytes,
        thread_bytes=source.thread_bytes(plan),
    )


def rpc_symbol(prefix: str) -> str:
    """The function in the shared library by which TVM's RPC server runs it, without linking."""
    return f"__tvm_ffi_{prefix}_rpc"


def weight_block(graph: Graph, plan: Plan) -> bytes:
    """All weights, each at its offset."""
    block = np.zeros(max(plan.weight_bytes, 1), np.uint8)
    for offset, array in zip(plan.weight_offsets, graph.weights, strict=True):
        block[offset : offset + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return block.tobytes()


def _split(scheduled: Any, graph: Graph, prefix: str, target: TargetSpec) -> dict[str, Kernel]:
    signatures: dict[str, Signature] = {}
    for call in graph.calls:
        weights = frozenset(i for i, ref in enumerate(call.arguments) if ref.space == "weight")
        known = signatures.get(call.kernel)
        signatures[call.kernel] = Signature(
            len(call.results), weights if known is None else weights & known.weights
        )
    return split_kernels(scheduled, signatures, prefix, target)


def _objects(
    place: Path,
    tools: Toolchain,
    plan: Plan,
    graph: Graph,
    kernels: Mapping[str, Kernel],
    weights: bytes,
    about: source.Description,
) -> Path:
    """Compile everything into one relocatable object."""
    name = about.prefix
    (place / f"{name}.h").write_text(source.header(plan, graph, about), encoding="utf-8")
    text = source.program(plan, graph, kernels, about)
    (place / f"{name}.c").write_text(text, encoding="utf-8")
    (place / "weights.bin").write_bytes(weights)
    assembly = source.weights_assembly(plan, about, "weights.bin")
    (place / "weights.S").write_text(assembly, encoding="utf-8")
    objects = [place / f"{stem}.o" for stem in ("program", "kernels", "weights")]
    tools.compile(place / f"{name}.c", objects[0])
    compile_kernels(kernels, tools.target, objects[1])
    tools.compile(place / "weights.S", objects[2])
    joined = place / f"lib{name}.o"  # `kernels` is a name that a network may have
    tools.join(objects, joined)
    return joined


def compile_kernels(kernels: Mapping[str, Kernel], target: TargetSpec, output: Path) -> None:
    """Compile kernels to an object file.

    Raises:
        CompileError: TVM refuses them, or they call what a C library does not have.
    """
    from tvmattend.codegen.intrinsics import use_vector_math

    use_vector_math()
    hint = "run again with --debug for the whole message"
    # The lowering of intrinsics asks which core it is for.
    with compiling(f"the kernels for {target.describe()}", hint), target.to_tvm():
        code = generate(list(kernels.values()), target)
        code.write_to_file(str(output), "o")
    strangers = [
        name for name in sorted(elf.symbols(output).undefined) if not _KERNEL_CALLS.fullmatch(name)
    ]
    if strangers:
        raise CompileError(
            f"the kernels call {', '.join(strangers)}, which a C library does not have",
            "`--format vm` links them with TVM's runtime",
        )


def _check_interface(graph: Graph, imported: "ImportedModel") -> None:
    """Hold the compiled network against what the import said of it."""
    sides = (
        ("input", graph.inputs, imported.inputs),
        ("output", graph.results, imported.outputs),
    )
    for kind, tensors, specs in sides:
        found = [(tensor.shape, tensor.dtype) for tensor in tensors]
        wanted = [(tuple(spec.shape), spec.dtype) for spec in specs]
        if found != wanted:
            raise CompileError(f"the {kind}s of `main` are {found}, the import said {wanted}")


def _check_library(shared: Path, header: Path, libc: Libc) -> tuple[str, ...]:
    """Hold the library to its promise: the system's libraries only, the header's names only."""
    needed = tuple(elf.needed(shared))
    strangers = [name for name in needed if not _SYSTEM_LIBRARIES[libc].fullmatch(name)]
    if strangers:
        raise CompileError(
            f"{shared.name} needs {', '.join(strangers)}, which is not part of {libc}",
            f"is the compiler given one for {libc}? without --cross-compiler Zig links",
        )
    visible = elf.symbols(shared, dynamic=True).visible
    prefix = header.stem
    text = header.read_text(encoding="utf-8")
    declared = set(re.findall(rf"_API [^;(]*?\b({prefix}_\w+)\(", text))
    declared.add(rpc_symbol(prefix))
    if visible != declared:
        names = ", ".join(sorted(visible ^ declared))
        raise CompileError(f"{shared.name} and {header.name} do not agree on {names}")
    return needed
