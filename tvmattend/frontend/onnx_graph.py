# SPDX-License-Identifier: Apache-2.0
"""An `.onnx` file -> Relax, with errors that name the node at fault."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

from tvmattend.errors import ModelError, UnsupportedOperatorError
from tvmattend.expressions import constant
from tvmattend.frontend.extents import static_extent
from tvmattend.frontend.faults import EMPTY, OTHERWISE, first_line, reason
from tvmattend.frontend.known_operators import OperatorCheck
from tvmattend.frontend.onnx_converters import CONVERTERS, PREPARATIONS, Node
from tvmattend.frontend.outputs import Declared, fits, in_words
from tvmattend.frontend.request import ModelRequest
from tvmattend.frontend.rewriting import end_open_blocks

_STANDARD = ("", "ai.onnx")
# `If` has no converter: the importer treats it itself, and the canonical form refuses it.
_WITHOUT_CONVERTER = ("Constant", "If")


def load_onnx(path: Path) -> Any:
    """Read and check a model.

    Raises:
        ModelError: The file is damaged or no ONNX model.
        UnsupportedOperatorError: The first node whose operator the importer does not know.
    """
    try:
        model = onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"cannot read `{path}`: {first_line(error)}", "export it again") from error
    if not model.graph.node:
        raise ModelError(f"`{path}` holds no ONNX graph", "export it again")
    known = _get_convert_map()
    for node in model.graph.node:
        standard = node.domain in _STANDARD
        if not standard or (node.op_type not in known and node.op_type not in _WITHOUT_CONVERTER):
            domain = "" if standard else f"{node.domain}::"
            raise _unsupported(f"{domain}{node.op_type}", node, "the importer does not know it")
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            raise ModelError(
                f"`{path}` may run Dropout in training mode (node {_label(node)})",
                "call .eval() on the network before it is exported",
            )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"`{path}` is not a valid ONNX model: {first_line(error)}", "export it again"
        ) from error
    return model


def files(path: Path) -> list[Path]:
    """List the file of a model that can be loaded, and those that it keeps weights in."""
    graph = onnx.load(path, load_external_data=False).graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    places = {ExternalDataInfo(t).location for t in tensors if uses_external_data(t)}
    return [path, *(path.parent / place for place in sorted(places))]


def fix_shapes(model: Any, request: ModelRequest) -> None:
    """Give every input a static shape, in place.

    Raises:
        ModelError: A fixed extent that differs from what was asked, or one that nothing fixes.
    """
    for value in graph_inputs(model):
        extents = value.type.tensor_type.shape.dim
        for axis, extent in enumerate(extents):
            own = (
                int(extent.dim_value)
                if extent.HasField("dim_value")
                else str(extent.dim_param or "unknown")
            )
            extent.dim_value = static_extent(request, value.name, axis, len(extents), own)


def graph_inputs(model: Any) -> list[Any]:
    """List the inputs that are no initializers (old files list those too)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def opset(model: Any) -> int:
    """Give the version of ONNX's operators that a model is written in."""
    return int(next(e.version for e in model.opset_import if e.domain in _STANDARD))


def to_relax(model: Any, declared: Mapping[str, Declared]) -> IRModule:
    """Translate a checked model of static shapes.

    Args:
        model: As read, its inputs fixed.
        declared: What ONNX says that the tensors are, by their names.

    Raises:
        ModelError: The importer fails outside any node.
        UnsupportedOperatorError: The importer cannot translate a node, or makes another shape or
            element type of it.
    """
    importer = _LocatingImporter({}, None)
    # The importer prints the inputs of a node that fails, and warns of every name it cleans.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importer.from_onnx(model.graph, opset(model))
        except Exception as error:  # the importer fails in many ways, none of them its own class
            end_open_blocks(importer.bb)
            if isinstance(error, UnsupportedOperatorError):
                raise
            raise ModelError(
                f"TVM cannot import the network: {first_line(error)}",
                "run again with --debug for the traceback",
            ) from error
    importer.check(model, declared)
    return IRModule({"main": cast("Any", module)["main"].without_attr("num_input")})


class _LocatingImporter(ONNXGraphImporter):  # type: ignore[misc]
    """TVM's importer, with the node at fault in its errors."""

    def __init__(self, shapes: dict[str, list[Any]], dtypes: str | dict[str, str] | None) -> None:
        super().__init__(shapes, dtypes)
        self._operators = OperatorCheck(self.bb.lookup_binding)

    def check(self, model: Any, declared: Mapping[str, Declared]) -> None:
        """Refuse the first node whose result is not what ONNX says, not static, or empty."""
        for node in model.graph.node:
            for name in node.output:
                found = getattr(self._nodes.get(name), "ty", None)
                if not isinstance(found, relax.TensorType):
                    continue
                if not all(isinstance(extent, tirx.IntImm) for extent in found.shape or ()):
                    raise _unsupported(node.op_type, node, "its shape depends on the data")
                if found.shape is None:
                    continue
                # An empty constant may be an operand that is not given.
                empty = any(int(extent) == 0 for extent in found.shape)
                if empty and constant(self._nodes[name]) is None:
                    raise _unsupported(node.op_type, node, EMPTY)
                if name not in declared:
                    continue
                shape, kind = [int(extent) for extent in found.shape], str(found.dtype.dtype)
                if not fits(shape, kind, declared[name]):
                    ours, theirs = in_words((tuple(shape), kind)), in_words(declared[name])
                    raise _unsupported(node.op_type, node, f"it becomes {ours}, not {theirs}")

    def _convert_operator(self, op_name: str, inputs: Any, attrs: Any, opset: int) -> Any:
        name = str(attrs.get("tvm_custom", {}).get("name", ""))
        message = f"operator `{op_name}` cannot be imported" + (f", node `{name}`" if name else "")
        try:
            result = self._convert(op_name, inputs, attrs, opset)
        except Exception as error:  # converters raise what they like
            raise UnsupportedOperatorError(
                message, f"{reason(error)}; express it with other operators"
            ) from error
        if fault := self._operators.fault(result):
            raise UnsupportedOperatorError(message, f"{fault}; {OTHERWISE}")
        return result

    def _convert(self, op_name: str, inputs: Any, attrs: Any, opset: int) -> Any:
        node = Node(inputs, attrs, [self._nodes, self._params])
        if op_name in CONVERTERS:
            return self.bb.normalize(CONVERTERS[op_name](node))
        if op_name in PREPARATIONS:
            PREPARATIONS[op_name](node)
        return super()._convert_operator(op_name, inputs, attrs, opset)


def _unsupported(operator: str, node: Any, why: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(
        f"operator `{operator}` cannot be imported, node {_label(node)}",
        f"{why}; {OTHERWISE}",
    )


def _label(node: Any) -> str:
    return f"`{node.name}`" if node.name else f"with output `{node.output[0]}`"
