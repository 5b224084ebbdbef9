# SPDX-License-Identifier: Apache-2.0
"""A PyTorch module or exported program -> Relax, with errors that name the line at fault."""

from typing import cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from tvm.ir import IRModule

from tvmattend.errors import ModelError, UnsupportedOperatorError
from tvmattend.frontend.decompositions import decompositions
from tvmattend.frontend.faults import (
    first_line,
    quiet,
    source_line,
    unsupported,
    user_line,
)
from tvmattend.frontend.rewriting import end_open_blocks
from tvmattend.frontend.torch_importer import LocatingImporter, arguments

_EVAL_HINT = "call .eval() on the network before it is exported"
# Random operators give another output at every call; a compiled network cannot follow PyTorch's.
_RANDOM = (
    "rand",
    "randn",
    "randint",
    "bernoulli",
    "normal",
    "multinomial",
    "poisson",
    "exponential",
)


def export(module: nn.Module, inputs: tuple[torch.Tensor, ...], name: str) -> ExportedProgram:
    """Trace a module in evaluation mode with inputs of a fixed shape.

    Raises:
        ModelError: torch.export refuses; the message is its first useful line and the user's.
    """
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module.eval(), inputs)
    except Exception as error:  # torch.export documents no base class for what it raises
        shapes = ", ".join(" x ".join(map(str, tensor.shape)) for tensor in inputs)
        raise ModelError(
            f"torch.export cannot export {name}: {first_line(error)}{user_line(error)}",
            f"its forward is given {shapes} (--input-size, --batch; a network of other inputs "
            "comes as .pt2 or .onnx), must take one path, and no shape may depend on the data",
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
    importer = LocatingImporter()
    # Before decompositions run, which would execute an operator of somebody's own.
    _check_namespaces(program)
    with quiet():
        program = program.run_decompositions(decompositions())
    _check_unchanging(program)
    importer.check(program)
    try:
        module = importer.from_exported_program(
            program,
            keep_params_as_input=False,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=None,
        )
    except Exception as error:  # the importer fails in many ways, none of them its own class
        end_open_blocks(importer.block_builder)
        if isinstance(error, ModelError | UnsupportedOperatorError):
            raise
        raise ModelError(
            f"TVM cannot import the network: {first_line(error)}",
            "run again with --debug for the traceback",
        ) from error
    return cast("IRModule", module), importer.paths


def _check_program(program: ExportedProgram) -> None:
    tensors = {
        node.name for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    }
    for place, output in enumerate(program.graph_signature.user_outputs):
        if output not in tensors:
            raise ModelError(
                f"output {place} of the network is `{output}`, which is not a tensor",
                "return tensors only",
            )
    for spec in program.graph_signature.input_specs:
        if spec.kind in {InputKind.CUSTOM_OBJ, InputKind.TOKEN}:
            raise ModelError(
                f"the network takes `{spec.target or spec.arg.name}`, which is not a tensor",
                "export a network of tensors only",
            )
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = str(getattr(node.target, "__name__", node.target)).partition(".")[0].rstrip("_")
        given = dict(arguments(node))
        training = given.get("train" if "dropout" in name else "training")
        if training is True and "norm" in name and given.get("running_mean") is None:
            raise ModelError(
                f"`{name}` has no running statistics, at {source_line(node)}",
                "a compiled network needs them: train it with track_running_stats=True",
            )
        if training is True and ("dropout" in name or "norm" in name):
            raise ModelError(f"`{name}` runs in training mode, at {source_line(node)}", _EVAL_HINT)
        if name in _RANDOM or name.removesuffix("_like") in _RANDOM:
            raise ModelError(
                f"the network draws random numbers: `{name}` at {source_line(node)}",
                "a compiled network must give the same output for the same input",
            )


def _check_unchanging(program: ExportedProgram) -> None:
    """Refuse changes of buffers, which only decompositions tell from other operators."""
    changes = {OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION}
    for spec in program.graph_signature.output_specs:
        if spec.kind in changes:
            raise ModelError(
                f"the network changes `{spec.target}` in place, as in training",
                "keep nothing between calls; " + _EVAL_HINT,
            )


def _check_namespaces(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if node.op == "call_function":
            module = getattr(node.target, "namespace", getattr(node.target, "__module__", ""))
            if module not in {"aten", "prims", "_operator", "operator", "math", "builtins"}:
                raise unsupported(node, "it is not one of PyTorch's own")
