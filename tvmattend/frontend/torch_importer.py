# SPDX-License-Identifier: Apache-2.0
"""TVM's importer of exported programs, with the node at fault in its errors.

Converters of its that drop an argument, or give what PyTorch does not, are replaced or refuse it.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from torch.export import ExportedProgram
from torch.fx import Node
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvmattend.frontend.faults import EMPTY, reason, unsupported
from tvmattend.frontend.known_operators import OperatorCheck, makes_a_number
from tvmattend.frontend.outputs import in_words, of_value


class LocatingImporter(ExportedProgramImporter):  # type: ignore[misc]
    """TVM's importer, with the node at fault in its errors and the module behind each variable."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[str, str] = {}
        self._operators = OperatorCheck(self._binding)

    def create_convert_map(self) -> dict[str, Callable[[Node], Any]]:
        """Wrap TVM's converters, and replace those whose results differ from PyTorch's."""
        converters = dict(super().create_convert_map())
        converters["upsample_nearest2d.vec"] = self._nearest
        converters["elu.default"] = self._scaled_elu(converters["elu.default"])
        for pool in ("avg_pool2d.default", "avg_pool3d.default"):
            converters[pool] = _without_divisor(converters[pool])
        for pool in ("max_pool2d", "max_pool3d"):
            for name in (f"{pool}.default", f"{pool}_with_indices.default"):
                converters[name] = _with_stride(converters[name])
        linear = "upsample_bilinear2d.vec"
        converters[linear] = self._whole_pixels(converters[linear])
        del converters["_upsample_bilinear2d_aa.default"]  # it leaves the filter out
        converters["index.Tensor"] = self._index
        converters["clamp.default"] = self._clamp_to_numbers
        for name, extreme, place in (
            ("max", relax.op.max, relax.op.argmax), ("min", relax.op.min, relax.op.argmin),
        ):  # fmt: skip
            converters[f"a{name}.default"] = self._extreme(extreme)
            converters[f"{name}.dim"] = self._extreme_and_place(extreme, place)
        converters["adaptive_max_pool2d.default"] = self._adaptive_max_pool
        converters["prod.dim_int"] = converters["prod.default"]
        return {name: self._located(convert) for name, convert in converters.items()}

    def check(self, program: ExportedProgram) -> None:
        """Refuse the first operator that has no converter."""
        for node in program.graph.nodes:
            if node.op == "call_function" and node.target.__name__ not in self.convert_map:
                raise unsupported(node, "the importer does not know it")

    def _located(self, convert: Callable[[Node], Any]) -> Callable[[Node], Any]:
        def located(node: Node) -> Any:
            try:
                result = convert(node)
            except Exception as error:  # converters raise what they like
                raise unsupported(node, reason(error)) from error
            if fault := self._operators.fault(result):
                raise unsupported(node, fault)
            if isinstance(result, relax.Var):
                self._check_type(node, result)
                if isinstance(result.ty, relax.TensorType) and 0 in _shape(result):
                    raise unsupported(node, EMPTY)
                if makes_a_number(self.block_builder.lookup_binding(result)):
                    raise unsupported(node, "it reduces a whole tensor, batch and all, to a number")
                # The first node wins: `getitem` of a tuple gives back the variable it names.
                self.paths.setdefault(str(result.name), _module_path(node))
            return result

        return located

    def _check_type(self, node: Node, result: relax.Var) -> None:
        """Refuse a translation of another shape or element type than PyTorch's."""
        expected = of_value(node.meta.get("val"))
        if expected is None or not isinstance(result.ty, relax.TensorType):
            return
        found = tuple(_shape(result)), str(result.ty.dtype.dtype)
        if found != expected:
            raise unsupported(node, f"it becomes {in_words(found)}, not {in_words(expected)}")

    def _binding(self, variable: relax.Var) -> Any:
        return self.block_builder.lookup_binding(variable)  # there is no builder before the import

    def _scaled_elu(self, convert: Callable[[Node], Any]) -> Callable[[Node], Any]:
        """SELU is an ELU with a scale, which TVM's converter leaves out."""

        def scaled(node: Node) -> Any:
            given = dict(arguments(node))
            if given.get("input_scale", 1) != 1:
                raise ValueError("`input_scale` has no counterpart in Relax")
            result, scale = convert(node), float(given.get("scale", 1))
            if scale == 1:
                return result
            factor = relax.const(scale, str(result.ty.dtype.dtype))
            return self.block_builder.emit(relax.op.multiply(result, factor))

        return scaled

    def _extreme(self, reduce: Callable[..., Any]) -> Callable[[Node], Any]:
        """`amax` and `amin`, which TVM's importer does not know."""

        def reduced(node: Node) -> Any:
            given = dict(arguments(node))
            axes = [int(axis) for axis in given.get("dim", ())] or None
            keep = bool(given.get("keepdim", False))
            return self.block_builder.emit(reduce(self.env[node.args[0]], axes, keep))

        return reduced

    def _extreme_and_place(
        self, reduce: Callable[..., Any], find: Callable[..., Any]
    ) -> Callable[[Node], Any]:
        """`max` and `min` over one axis: TVM's converter sorts, which cannot be compiled."""

        def reduced(node: Node) -> Any:
            given = dict(arguments(node))
            data, axis = self.env[node.args[0]], int(given["dim"])
            keep = bool(given.get("keepdim", False))
            both = relax.Tuple([reduce(data, axis, keep), find(data, axis, keep)])
            return self.block_builder.emit(both)

        return reduced

    def _adaptive_max_pool(self, node: Node) -> Any:
        """Windows of one size, where the output divides the input."""
        data = self.env[node.args[0]]
        extents, size = _shape(data)[2:], [int(extent) for extent in cast("Any", node.args[1])]
        if any(extent % wanted for extent, wanted in zip(extents, size, strict=True)):
            raise ValueError(f"{size} windows of {extents} pixels are not of one size")
        window = [extent // wanted for extent, wanted in zip(extents, size, strict=True)]
        if size == [1, 1]:
            pooled = relax.op.max(data, [2, 3], keepdims=True)
        else:
            pooled = relax.op.nn.max_pool2d(data, window, window)
        return self.block_builder.emit(relax.Tuple([pooled]))  # nothing says where they came from

    def _nearest(self, node: Node) -> Any:
        """PyTorch takes pixel floor(i * step), all in float32; TVM's converter rounds half pixels.

        Mostly that is i * in // out, which a resize computes; where rounding makes it another
        pixel (2 -> 82), or a scale factor is not out / in, the pixels are taken by their indices.
        """
        data, sizes, factors = cast("list[Any]", [*node.args, None, None][:3])
        source = self.env[data]
        extents = _shape(source)[2:]
        if sizes is None:
            given = [float(factor) for factor in factors]
            size = [int(extent * factor) for extent, factor in zip(extents, given, strict=True)]
            steps = [np.float32(1 / factor) for factor in given]
        else:
            size = [int(extent) for extent in sizes]
            steps = [np.float32(a) / np.float32(b) for a, b in zip(extents, size, strict=True)]
        for axis, (extent, wanted, step) in enumerate(zip(extents, size, steps, strict=True), 2):
            pixels = np.arange(wanted)
            nearest = np.minimum((pixels.astype("float32") * step).astype("int64"), extent - 1)
            if not np.array_equal(nearest, pixels * extent // wanted):
                chosen = relax.op.take(source, relax.const(nearest, "int64"), axis)
                source = self.block_builder.emit(chosen)
        if _shape(source)[2:] == size and source is not self.env[data]:
            return source
        return self.block_builder.emit(
            relax.op.image.resize2d(
                source,
                relax.ShapeExpr(size),
                layout="NCHW",
                method="nearest_neighbor",
                coordinate_transformation_mode="asymmetric",
                rounding_method="floor",
            )
        )

    def _index(self, node: Node) -> Any:
        """Several indices choose together, where TVM's converter has each choose for itself.

        The rows and columns of a grid do. For others the indexed axes become one, ahead of all
        others if they stood apart, and the indices one into it.
        """
        data, indices = self.retrieve_args(node)
        axes = [axis for axis, index in enumerate(indices) if index is not None]
        given = [indices[axis] for axis in axes]
        if any(str(index.ty.dtype.dtype) == "bool" for index in given):
            raise ValueError("the number of elements depends on the data")
        if len(axes) == 1:
            return self.block_builder.emit(relax.op.take(data, given[0], axes[0]))
        together = axes[-1] - axes[0] == len(axes) - 1
        if together and _is_grid([_shape(index) for index in given]):
            for axis, index in zip(axes, given, strict=True):
                data = self.block_builder.emit(
                    relax.op.take(data, relax.op.reshape(index, [-1]), axis)
                )
            return data
        place = axes[0] if together else 0
        others = [axis for axis in range(len(_shape(data))) if axis not in axes]
        order = [*others[:place], *axes, *others[place:]]
        extents = [_shape(data)[axis] for axis in order]
        last = place + len(axes)
        flat = relax.const(0, "int64")
        for index, extent in zip(given, extents[place:last], strict=True):
            size = relax.const(extent, "int64")
            inside = relax.op.floor_mod(relax.op.astype(index, "int64"), size)
            flat = relax.op.add(relax.op.multiply(flat, size), inside)
        merged = [*extents[:place], math.prod(extents[place:last]), *extents[last:]]
        source = relax.op.reshape(relax.op.permute_dims(data, order), merged)
        return self.block_builder.emit(relax.op.take(source, flat, place))

    def _clamp_to_numbers(self, node: Node) -> Any:
        """The upper bound wins, and integers have no infinity for a bound that is not given."""
        data, kind = self.env[node.args[0]], str(self.env[node.args[0]].ty.dtype.dtype)
        given = dict(arguments(node))
        low, high = given.get("min"), given.get("max")
        if "int" not in kind:
            high = math.inf if high is None else high
            low = -math.inf if low is None else min(low, high)
            return self.block_builder.emit(relax.op.clip(data, low, high))
        for bound, choose in ((low, relax.op.maximum), (high, relax.op.minimum)):
            data = data if bound is None else choose(data, relax.const(bound, kind))
        return self.block_builder.emit(data)

    def _whole_pixels(self, convert: Callable[[Node], Any]) -> Callable[[Node], Any]:
        """Steps of 1 / factor, as PyTorch takes, are TVM's in / out only for whole results."""

        def checked(node: Node) -> Any:
            given = dict(arguments(node))
            extents = _shape(self.env[node.args[0]])[2:]
            if given.get("align_corners") and 1 in node.meta["val"].shape[2:]:
                raise ValueError("one pixel has no two corners to align")
            for extent, factor in zip(extents, given.get("scale_factors") or (), strict=False):
                if not float(extent * factor).is_integer():
                    raise ValueError(f"{extent} pixels times {factor:g} are no whole number")
            return convert(node)

        return checked


def _without_divisor(convert: Callable[[Node], Any]) -> Callable[[Node], Any]:
    """TVM's converter leaves `divisor_override` out, and the averages come out wrong."""

    def checked(node: Node) -> Any:
        if dict(arguments(node)).get("divisor_override") is not None:
            raise ValueError("`divisor_override` has no counterpart in Relax")
        return convert(node)

    return checked


def _with_stride(convert: Callable[[Node], Any]) -> Callable[[Node], Any]:
    """A stride that is not given is the window's size; where more arguments follow it is empty."""

    def strided(node: Node) -> Any:
        if len(node.args) > 2 and not node.args[2]:
            node.update_arg(2, node.args[1])
        return convert(node)

    return strided


def _is_grid(shapes: list[list[int]]) -> bool:
    """Whether the first has its extent in the first axis alone, the second in the second."""
    rank = len(shapes)
    if max(map(len, shapes)) != rank:
        return False
    return all(
        extent == 1 or axis == place
        for place, shape in enumerate(shapes)
        for axis, extent in enumerate(shape, rank - len(shape))
    )


def _shape(expression: Any) -> list[int]:
    return [int(extent) for extent in expression.ty.shape]


def arguments(node: Node) -> list[tuple[str, Any]]:
    """List the arguments that are given, by the names of the operator's schema."""
    schema = getattr(node.target, "_schema", None)
    names = [str(argument.name) for argument in schema.arguments] if schema is not None else []
    return [*zip(names, node.args, strict=False), *node.kwargs.items()]


def _module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    # torch.export of an exported program's own module prefixes what the first export called it.
    return path.removeprefix("L['self'].")
