# SPDX-License-Identifier: Apache-2.0
"""Plan -> C: the header, the C++ header, and one file that is the whole program but the kernels.

`c/` holds real C under the name `network`; what is generated has the model's name instead, so that
two networks link into one program. The tables and the switch over the steps are all that differs
between two networks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tvmattend import __version__
from tvmattend.errors import CompileError
from tvmattend.preprocessing import Preprocessing
from tvmattend.standalone.graph import Graph, Tensor
from tvmattend.standalone.kernels import ALIGNMENT, Kernel, Param, Phase
from tvmattend.standalone.plan import Place, Plan, Step

_TEMPLATES = Path(__file__).parent / "c"
_MAX_RANK = 8
_LINE = 128  # LINE_BYTES of support.c: threads' scratch must not share cache lines


class Spec(Protocol):
    """An input or output, as the bundle describes it."""

    @property
    def name(self) -> str:
        """Of the tensor."""

    @property
    def layout(self) -> str:
        """E.g. NCHW; may be empty."""


@dataclass(frozen=True)
class Description:
    """What a network says about itself in C.

    Attributes:
        prefix: Of every C name; an identifier.
        model: The network's name.
        target: The machine, in one line.
        threads: That the kernels were scheduled for.
        weights_sha256: Of the block of weights.
        inputs: Names and layouts, in order.
        outputs: Likewise.
        recipe: From an image to the input, if there is one.
    """

    prefix: str
    model: str
    target: str
    threads: int
    weights_sha256: str
    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    recipe: Preprocessing | None = None


def header(plan: Plan, graph: Graph, about: Description) -> str:
    """`<prefix>.h`."""
    text = _template("network.h", about.prefix)
    return text.replace("/* @constants@ */", "\n".join(_constants(plan, graph, about)))


def cpp_header(about: Description) -> str:
    """`<prefix>.hpp`."""
    return _template("network.hpp", about.prefix)


def program(plan: Plan, graph: Graph, kernels: Mapping[str, Kernel], about: Description) -> str:
    """The C file: tables, support, and the switch that calls the kernels."""
    phases = {phase.symbol: phase for kernel in kernels.values() for phase in kernel.phases}
    name = about.prefix
    lines = [
        f"/* {about.model}, compiled by tvmattend {__version__}. Generated: do not edit. */",
        "#define _GNU_SOURCE",
        f'#include "{name}.h"',
        "",
        '#define HIDDEN extern __attribute__((visibility("hidden")))',
        f"HIDDEN const unsigned char {name}_weights[];",
        *(_declaration(phases[symbol]) for symbol in _symbols(plan)),
        "",
        f"static const {name}_info INFO = {{{_info(plan, graph, about)}}};",
        "",
        _specs("INPUTS", name, graph.inputs, about.inputs),
        _specs("OUTPUTS", name, graph.results, about.outputs),
        "",
        "/* Iterations that the threads share (0: thread 0 runs it); whether to wait before. */",
        "struct step {",
        "  int32_t parts;",
        "  int32_t sync;",
        "};",
        "static const struct step STEPS[] = {",
        *(f"    {{{step.parts}, {int(step.sync)}}}," for step in plan.steps),
        "};",
        "static const char *const STEP_NAMES[] = {",
        *(f"    {_quoted(_step_name(step, name))}," for step in plan.steps),
        "};",
        "",
        _template("support.c", name),
        "/* --- The network ".ljust(97, "-") + " */",
        "",
        f"static void run_step(unsigned number, const {name}_instance *net, unsigned char *own,",
        "                     int32_t first, int32_t last) {",
        f"  const unsigned char *const weights = {name}_weights;",
        "  unsigned char *const arena = net->arena;",
        "  switch (number) {",
        *(line for number, step in enumerate(plan.steps) for line in _case(number, step, phases)),
        "    default:",
        "      break;",
        "  }",
        "  /* A network need not use all of these. */",
        "  (void)weights, (void)arena, (void)own, (void)first, (void)last;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def rpc_door(about: Description) -> str:
    """The C file with the function that TVM's RPC server calls."""
    return _template("rpc.c", about.prefix)


def golden_program(prefix: str) -> str:
    """The C file of a program that runs one inference from stdin to stdout."""
    return _template("golden.c", prefix)


def weights_assembly(plan: Plan, about: Description, blob: str) -> str:
    """Assembly that puts the file `blob` into read-only data."""
    symbol = f"{about.prefix}_weights"
    return f"""\
        .section .rodata.{symbol}, "a", %progbits
        .balign {ALIGNMENT}
        .globl {symbol}
        .hidden {symbol}
        .type {symbol}, %object
        .size {symbol}, {max(plan.weight_bytes, 1)}
{symbol}:
        .incbin "{blob}"
        .section .note.GNU-stack, "", %progbits
"""


def _template(file: str, prefix: str) -> str:
    text = (_TEMPLATES / file).read_text(encoding="utf-8")
    text = re.sub(r"(?<![A-Za-z0-9])network(?=_|::|\.h\b)|(?<=namespace )network\b", prefix, text)
    return re.sub(r"\bNETWORK(?=_)", prefix.upper(), text)


def _constants(plan: Plan, graph: Graph, about: Description) -> list[str]:
    name = about.prefix.upper()
    values: list[tuple[str, object]] = [
        ("NUM_INPUTS", len(graph.inputs)),
        ("NUM_OUTPUTS", len(graph.outputs)),
        ("NUM_STEPS", len(plan.steps)),
        *((f"INPUT_{i}_BYTES", tensor.size) for i, tensor in enumerate(graph.inputs)),
        *((f"OUTPUT_{i}_BYTES", graph.tensor(ref).size) for i, ref in enumerate(graph.outputs)),
        ("ARENA_BYTES", plan.arena_bytes),
        ("THREAD_BYTES", thread_bytes(plan)),
    ]
    lines = [
        f"/* Of this network, compiled for {about.target}.",
        " * Nothing checks the CPU: on one without its instructions a program ends with SIGILL. */",
        *(f"#define {name}_{key} {value}" for key, value in values),
    ]
    if about.recipe is not None:
        lines += [
            "",
            "/* From a photograph to the input: the short side to RESIZE, the middle CROP x CROP,",
            " * then (pixel * SCALE - MEAN) / STD a channel of RGB, pixels being 0..255. */",
            f"#define {name}_RESIZE {about.recipe.resize}",
            f"#define {name}_CROP {about.recipe.crop}",
            f"#define {name}_SCALE {about.recipe.scale!r}",
            f"#define {name}_MEAN {{{', '.join(map(repr, about.recipe.mean))}}}",
            f"#define {name}_STD {{{', '.join(map(repr, about.recipe.std))}}}",
        ]
    return lines


def thread_bytes(plan: Plan) -> int:
    """Scratch of one thread, in bytes, in whole cache lines."""
    return -(-plan.private_bytes // _LINE) * _LINE


def _info(plan: Plan, graph: Graph, about: Description) -> str:
    name = about.prefix.upper()
    counts = (about.threads, len(graph.inputs), len(graph.outputs), len(plan.steps))
    sizes = (plan.weight_bytes, f"{name}_ARENA_BYTES", f"{name}_THREAD_BYTES")
    texts = (about.model, __version__, about.target, about.weights_sha256)
    return ", ".join([f"{name}_ABI", *map(str, (*counts, *sizes)), *map(_quoted, texts)])


def _specs(table: str, name: str, tensors: Sequence[Tensor], specs: Sequence[Spec]) -> str:
    lines = [f"static const {name}_spec {table}[] = {{"]
    for tensor, spec in zip(tensors, specs, strict=True):
        if len(tensor.shape) > _MAX_RANK:
            raise CompileError(
                f"`{spec.name}` has {len(tensor.shape)} axes; {_MAX_RANK} is the most"
            )
        shape = ", ".join(map(str, tensor.shape)) or "0"
        texts = ", ".join(map(_quoted, (spec.name, tensor.dtype, spec.layout)))
        lines.append(f"    {{{texts}, {len(tensor.shape)}, {{{shape}}}, {tensor.size}}},")
    return "\n".join([*lines, "};"])


def _symbols(plan: Plan) -> list[str]:
    return list(dict.fromkeys(step.symbol for step in plan.steps if step.symbol))


def _declaration(phase: Phase) -> str:
    def pointer(param: Param) -> str:
        return "void *" if param in phase.writes or param.role == "private" else "const void *"

    kinds = [*map(pointer, phase.params), *(["int32_t", "int32_t"] if phase.parts else [])]
    return f"HIDDEN void {phase.symbol}({', '.join(kinds)});"


def _case(number: int, step: Step, phases: Mapping[str, Phase]) -> list[str]:
    if step.symbol:
        bounds = ["first", "last"] if phases[step.symbol].parts else []
        call = f"{step.symbol}({', '.join([*map(_address, step.pointers), *bounds])});"
    else:
        source, target = map(_address, step.pointers)
        call = f"memcpy({target}, {source}, {step.touches[0].size});"
    return [f"    case {number}:", f"      {call}", "      break;"]


def _address(place: Place) -> str:
    if place.where in {"input", "output"}:
        return f"net->{place.where}s[{place.offset}]"
    base = {"weight": "weights", "arena": "arena", "private": "own"}[place.where]
    return f"{base} + {place.offset}" if place.offset else base


def _step_name(step: Step, prefix: str) -> str:
    return step.symbol.removeprefix(f"{prefix}_kernel_") or "copy"


def _quoted(text: str) -> str:
    """A C string literal; octal escapes for what is not printable ASCII."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{escaped}"'
