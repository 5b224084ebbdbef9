# SPDX-License-Identifier: Apache-2.0
"""Relax `main` -> a straight list of kernel calls on tensors of known size, or an error.

A C function can express a sequence of kernels over static tensors and nothing else. Everything in
`main` that is more - a dynamic shape, control flow, an operator that is no kernel, a call into a
runtime - is refused here, by name.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tvmattend.errors import CompileError

Space = Literal["input", "weight", "value"]

_HINT = "`--format vm` runs it through TVM's virtual machine"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the network: its variable, static shape in elements, and numpy's type name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Ref:
    """What a call reads or writes: an input, a weight or a value, by its place in the graph."""

    space: Space
    index: int


@dataclass(frozen=True)
class Call:
    """One call of a kernel: `results` are written whole, `arguments` only read."""

    kernel: str
    arguments: tuple[Ref, ...]
    results: tuple[Ref, ...]


@dataclass(frozen=True)
class Graph:
    """A network as a C function sees it.

    Attributes:
        inputs: In the order of `main`'s parameters.
        values: What the kernels write, each exactly once.
        weights: Distinct constants, C-contiguous.
        calls: In the order of execution.
        outputs: In the order of `main`'s result.
        results: The same, each in its own shape: what it refers to may have another.
    """

    inputs: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    weights: tuple["np.ndarray[Any, Any]", ...]
    calls: tuple[Call, ...]
    outputs: tuple[Ref, ...]
    results: tuple[Tensor, ...]

    def tensor(self, ref: Ref) -> Tensor:
        """Describe what a reference stands for."""
        if ref.space == "weight":
            array = self.weights[ref.index]
            return Tensor(f"weight {ref.index}", array.shape, str(array.dtype))
        return (self.inputs if ref.space == "input" else self.values)[ref.index]


def read_graph(scheduled: Any) -> Graph:
    """Read the calls of a scheduled network.

    Args:
        scheduled: IRModule of `tvmattend.codegen.schedule`, one Relax function `main` and one
            PrimFunc a kernel.

    Raises:
        CompileError: Something in `main` cannot be expressed; the message names it.
    """
    from tvm import relax

    # Reshapes of contiguous tensors are the same bytes: views, not kernels.
    mod = relax.transform.RewriteDataflowReshape()(scheduled)
    return _Reader(mod).read()


class _Reader:
    """Walks the bindings of `main` in order and collects the graph."""

    def __init__(self, mod: Any) -> None:
        self._mod = mod
        self._known: dict[Any, Any] = {}  # variable -> Ref, or a list of Refs for a tuple
        self._values: list[Tensor] = []
        self._weights: list[np.ndarray[Any, Any]] = []
        self._weight_of: dict[tuple[Any, ...], Ref] = {}
        self._calls: list[Call] = []

    def read(self) -> Graph:
        from tvm import relax

        main = self._mod["main"]
        inputs = []
        for place, param in enumerate(main.params):
            inputs.append(_tensor(param.name, param.ty))
            self._known[param] = Ref("input", place)
        if not isinstance(main.body, relax.SeqExpr):
            raise CompileError(f"`main` is a {type(main.body).__name__}, not a sequence", _HINT)
        for block in main.body.blocks:
            for binding in block.bindings:
                if not isinstance(binding, relax.VarBinding):
                    kind = type(binding).__name__
                    raise CompileError(f"`{binding.var.name}` is bound by a {kind}", _HINT)
                self._known[binding.var] = self._evaluate(binding.var.name, binding.value)
        result = self._evaluate("the result", main.body.body)
        outputs = tuple(result if isinstance(result, list) else [result])
        types = main.body.ty.fields if isinstance(result, list) else [main.body.ty]
        return Graph(
            tuple(inputs),
            tuple(self._values),
            tuple(self._weights),
            tuple(self._calls),
            outputs,
            tuple(_tensor(f"result {place}", kind) for place, kind in enumerate(types)),
        )

    def _evaluate(self, name: str, value: Any) -> Any:
        """Give the Ref of an expression, or a list of Refs for a tuple."""
        from tvm import ir, relax

        if isinstance(value, relax.Var):
            return self._known[value]
        if isinstance(value, ir.GenericConst):
            return self._weight(value)
        if isinstance(value, ir.Tuple):
            return [self._evaluate(name, item) for item in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return self._evaluate(name, value.tuple_value)[int(value.index)]
        if isinstance(value, relax.Call):
            operator = getattr(value.op, "name", str(value.op))
            if operator == "relax.call_tir":
                return self._call(name, value)
            if operator == "relax.reshape":
                return self._reshape(name, value)
            raise CompileError(f"`{name}` calls `{operator}`, which is not a kernel", _HINT)
        raise CompileError(f"`{name}` is a {type(value).__name__}, which has no C form", _HINT)

    def _reshape(self, name: str, call: Any) -> Any:
        source = self._evaluate(name, call.args[0])
        before, after = _tensor(name, call.args[0].ty), _tensor(name, call.ty)
        if before.size != after.size or before.dtype != after.dtype:
            raise CompileError(f"`{name}` reshapes {before.shape} to {after.shape}")
        return source

    def _call(self, name: str, call: Any) -> Any:
        kernel = str(call.args[0].name_hint)
        if len(call.args) > 2:
            raise CompileError(f"`{name}` passes shapes to the kernel `{kernel}`", _HINT)
        arguments = [self._evaluate(name, argument) for argument in call.args[1].fields]
        for place, argument in enumerate(arguments):
            if isinstance(argument, list):
                raise CompileError(f"`{name}` passes a tuple to `{kernel}` at {place}", _HINT)
        types = call.ty.fields if hasattr(call.ty, "fields") else [call.ty]
        results = []
        for place, kind in enumerate(types):
            label = name if len(types) == 1 else f"{name}.{place}"
            results.append(Ref("value", len(self._values)))
            self._values.append(_tensor(label, kind))
        given = [_tensor(name, argument.ty) for argument in call.args[1].fields]
        self._check(kernel, name, [*given, *(self._values[ref.index] for ref in results)])
        self._calls.append(Call(kernel, tuple(arguments), tuple(results)))
        return results[0] if len(results) == 1 else results

    def _check(self, kernel: str, name: str, tensors: list[Tensor]) -> None:
        """Hold a call against the kernel's own signature."""
        params = list(self._mod[kernel].params)
        if len(params) != len(tensors):
            raise CompileError(
                f"`{name}` passes {len(tensors)} tensors to `{kernel}`, which takes {len(params)}"
            )
        for param, tensor in zip(params, tensors, strict=True):
            if not hasattr(param, "shape"):
                raise CompileError(f"`{kernel}` takes `{param.name}`, which is no tensor", _HINT)
            wanted = (_static(kernel, param.shape), str(param.dtype))
            if wanted != (tensor.shape, tensor.dtype):
                raise CompileError(
                    f"`{name}` passes {tensor.dtype}{list(tensor.shape)} to `{kernel}`, "
                    f"which takes {wanted[1]}{list(wanted[0])} as `{param.name}`"
                )

    def _weight(self, constant: Any) -> Ref:
        array = np.ascontiguousarray(constant.value.numpy())
        # The importer shares no constants, a network may: the same bytes are stored once.
        key = (array.shape, str(array.dtype), array.tobytes())
        if key not in self._weight_of:
            self._weight_of[key] = Ref("weight", len(self._weights))
            self._weights.append(array)
        return self._weight_of[key]


def _tensor(name: str, kind: Any) -> Tensor:
    """Describe a value of static tensor type."""
    if getattr(kind, "shape", None) is None:
        raise CompileError(f"`{name}` is {kind}, not a tensor of known shape", _HINT)
    dtype = str(kind.dtype)
    if not re.fullmatch(r"(float|u?int)(8|16|32|64)|bool", dtype):
        raise CompileError(f"`{name}` holds {dtype}, which C has no type for", _HINT)
    return Tensor(name, _static(name, kind.shape), dtype)


def _static(name: str, shape: Any) -> tuple[int, ...]:
    from tvm.tirx import IntImm

    extents = list(getattr(shape, "values", shape))
    for extent in extents:
        if not isinstance(extent, int | IntImm):
            raise CompileError(f"`{name}` has the dynamic shape {extents}", _HINT)
    return tuple(int(extent) for extent in extents)
