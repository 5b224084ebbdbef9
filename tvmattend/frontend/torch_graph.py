# SPDX-License-Identifier: Apache-2.0
"""A PyTorch module or exported program -> Relax, with errors that name the line at fault."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from tvm import relax
from tvm.ir import IRModule
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvmattend.errors import ModelError, UnsupportedOperatorError

_EVAL_HINT = "call .eval() on the network before it is exported"
# Random operators give another output at every call; a compiled network cannot follow PyTorch's.
_RANDOM = ("rand", "randn", "randint", "bernoulli", "normal", "multinomial", "poisson")


def export(module: nn.Module, inputs: tuple[torch.Tensor, ...], name: str) -> ExportedProgram:
    """Trace a module in evaluation mode with inputs of a fixed shape.

    Raises:
        ModelError: torch.export refuses; the message is its first useful line.
    """
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module.eval(), inputs)
    except Exception as error:  # torch.export documents no base class for what it raises
        raise ModelError(
            f"torch.export cannot export {name}: {first_line(error)}",
            "its forward must take one path, and shapes may not depend on the data",
        ) from error


def to_relax(program: ExportedProgram) -> tuple[IRModule, dict[str, str]]:
    """Translate an exported program of static shapes.

    Returns:
        One function `main` with the weights bound, and the module path behind each variable.

    Raises:
        ModelError: The program was exported for training, or is random.
        UnsupportedOperatorError: An operator that the importer does not know or cannot translate.
    """
    _check_program(program)
    importer = _LocatingImporter()
    # Before decompositions run, which would execute an operator of somebody's own.
    _check_namespaces(program)
    with quiet():
        program = program.run_decompositions()
    importer.check(program)
    try:
        module = importer.from_exported_program(
            program,
            keep_params_as_input=False,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=None,
        )
    except (ModelError, UnsupportedOperatorError):
        raise
    except Exception as error:  # the importer fails in many ways, none of them its own class
        raise ModelError(
            f"TVM cannot import the network: {first_line(error)}",
            "run again with --debug for the traceback",
        ) from error
    return cast("IRModule", module), importer.paths


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a deprecation that PyTorch 2.13 causes in its own export code from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        yield


def first_line(error: BaseException) -> str:
    """Give the first line of an error that says something."""
    for line in str(error).splitlines():
        text = line.strip()
        if text and not re.fullmatch(r"[-=*#\s]+", text):
            return text
    return type(error).__name__


def source_line(node: Node) -> str:
    """Give `file:line: code` of a node, from the innermost frame outside torch itself."""
    frames = re.findall(
        r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)',
        str(node.meta.get("stack_trace") or ""),
    )
    own = [frame for frame in frames if "/torch/nn/" not in frame[0].replace("\\", "/")]
    if not frames:
        return ""
    file, line, code = (own or frames)[-1]
    return f"{file}:{line}: {code.strip()}"


class _LocatingImporter(ExportedProgramImporter):  # type: ignore[misc]
    """TVM's importer, with the node at fault in its errors and the module behind each variable."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[str, str] = {}

    def create_convert_map(self) -> dict[str, Callable[[Node], Any]]:
        """Wrap TVM's converters, and replace the one whose result differs from PyTorch's."""
        converters = dict(super().create_convert_map())
        converters["upsample_nearest2d.vec"] = self._nearest
        return {name: self._located(convert) for name, convert in converters.items()}

    def check(self, program: ExportedProgram) -> None:
        """Refuse the first operator that has no converter."""
        for node in program.graph.nodes:
            if node.op == "call_function" and node.target.__name__ not in self.convert_map:
                raise _unsupported(node, "the importer does not know it")

    def _located(self, convert: Callable[[Node], Any]) -> Callable[[Node], Any]:
        def located(node: Node) -> Any:
            try:
                result = convert(node)
            except Exception as error:  # converters raise what they like
                raise _unsupported(node, first_line(error)) from error
            if isinstance(result, relax.Var):
                # The first node wins: `getitem` of a tuple gives back the variable it names.
                self.paths.setdefault(str(result.name), _module_path(node))
            return result

        return located

    def _nearest(self, node: Node) -> Any:
        """PyTorch's `nearest` takes floor(index * in / out); TVM's converter rounds half pixels.

        The two agree for whole factors only: 3 -> 7 pixels differ.
        """
        data, size, factors = (*node.args, None, None)[:3]
        source = self.env[data]
        if size is None:
            extents = [int(extent) for extent in source.ty.shape[2:]]
            size = [int(n * f) for n, f in zip(extents, cast("list[float]", factors), strict=True)]
        return self.block_builder.emit(
            relax.op.image.resize2d(
                source,
                relax.ShapeExpr([int(extent) for extent in cast("list[int]", size)]),
                layout="NCHW",
                method="nearest_neighbor",
                coordinate_transformation_mode="asymmetric",
                rounding_method="floor",
            )
        )


def _unsupported(node: Node, reason: str) -> UnsupportedOperatorError:
    place = source_line(node)
    return UnsupportedOperatorError(
        f"operator `{_target(node)}` cannot be imported" + (f", at {place}" if place else ""),
        f"{reason}; express it with convolutions, pools, element-wise or linear operators",
    )


def _check_program(program: ExportedProgram) -> None:
    signature = program.graph_signature
    for spec in signature.output_specs:
        if spec.kind in {OutputKind.BUFFER_MUTATION, OutputKind.GRADIENT_TO_PARAMETER}:
            raise ModelError(
                f"the network changes its buffer `{spec.target}` as in training", _EVAL_HINT
            )
    for spec in signature.input_specs:
        if spec.kind in {InputKind.CUSTOM_OBJ, InputKind.TOKEN}:
            raise ModelError(
                f"the network takes `{spec.target or spec.arg.name}`, which is not a tensor",
                "export a network of tensors only",
            )
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = str(getattr(node.target, "__name__", node.target)).partition(".")[0].rstrip("_")
        training = {str(a.name): v for a, v in _arguments(node)}.get(
            "train" if "dropout" in name else "training"
        )
        if training is True and ("dropout" in name or "norm" in name):
            raise ModelError(f"`{name}` runs in training mode, at {source_line(node)}", _EVAL_HINT)
        if name in _RANDOM or name.removesuffix("_like") in _RANDOM:
            raise ModelError(
                f"the network draws random numbers: `{name}` at {source_line(node)}",
                "a compiled network must give the same output for the same input",
            )


def _arguments(node: Node) -> list[tuple[Any, Any]]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    given = [(a, node.kwargs[a.name]) for a in schema.arguments if a.name in node.kwargs]
    return [*zip(schema.arguments, node.args, strict=False), *given]


def _check_namespaces(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if node.op == "call_function":
            module = getattr(node.target, "namespace", getattr(node.target, "__module__", ""))
            if module not in {"aten", "prims", "_operator", "operator", "math", "builtins"}:
                raise _unsupported(node, "it is not one of PyTorch's own")


def _target(node: Node) -> str:
    name = getattr(node.target, "name", None)
    return str(name()) if callable(name) else str(getattr(node.target, "__name__", node.target))


def _module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    # torch.export of an exported program's own module prefixes what the first export called it.
    return path.removeprefix("L['self'].")
