# SPDX-License-Identifier: Apache-2.0
"""One spelling for each operation, so that a later pass matches one form whatever the source.

take(x, indices)                         ->  take(x, indices, mode="wrap")
split(x)                                 ->  a tuple of strided_slice(x), or x of one part
multiply(x, sigmoid(x)), either order    ->  nn.silu(x)
sinh(x), cosh(x)                         ->  (exp(x) -+ exp(-x)) / 2
power(x, a whole number up to 8)         ->  products of x
nn.conv2d(out_dtype=None)                ->  nn.conv2d(out_dtype=<the data's>)
matmul(out_dtype=None)                   ->  matmul(out_dtype=<the data's>)
add(constant, x), multiply(constant, x)  ->  add(x, constant), multiply(x, constant)
mean(x, negative axes)                   ->  mean(x, positive axes)
reshape(mean(x, keepdims=True), (N, C))  ->  mean(x)
nn.adaptive_avg_pool2d(x, (1, 1))        ->  mean(x, axes 2 and 3, keepdims=True)
nn.adaptive_avg_pool2d(x, even parts)    ->  nn.avg_pool2d(x)
nn.group_norm(x), instance_norm, layer_norm of several axes
    ->  d * rsqrt(mean(d * d) + eps), where d = e - mean(e) and e = x - mean(x)
nn.dropout(x)[0], astype, reshape, expand_dims or permute_dims that change nothing  ->  x
"""

from typing import Any

from tvm import relax

from tvmattend.expressions import constant, op_name
from tvmattend.frontend.rewriting import Scope


def wrapped_take(call: Any, scope: Scope) -> Any:
    """Count negative indices from the end, as PyTorch does, and read nothing outside the tensor.

    TVM's default mode reads wherever an index points.
    """
    del scope
    if op_name(call) != "relax.take" or call.attrs["mode"] == "wrap":
        return None
    return relax.op.take(*call.args, call.attrs["axis"], mode="wrap")


def sliced(call: Any, scope: Scope) -> Any:
    """Take each part for itself: a kernel has one output, and slices go into their readers."""
    if op_name(call) != "relax.split":
        return None
    x, axis = call.args[0], int(call.attrs["axis"])
    if isinstance(call.ty, relax.TensorType):  # of one part, which is no tuple
        return x
    axis %= len(x.ty.shape)
    parts, begin = [], 0
    for part in call.ty.fields:
        end = begin + int(part.shape[axis])
        parts.append(scope.emit(relax.op.strided_slice(x, [axis], [begin], [end])))
        begin = end
    return relax.Tuple(parts)


def silu(call: Any, scope: Scope) -> Any:
    """Recover SiLU from what torch.export and ONNX decompose it into."""
    if op_name(call) != "relax.multiply":
        return None
    for x, gate in (call.args, reversed(list(call.args))):
        inner = scope.value(gate)
        if op_name(inner) == "relax.sigmoid" and inner.args[0].same_as(x):
            return relax.op.nn.silu(x)
    return None


def hyperbolic(call: Any, scope: Scope) -> Any:
    """Spell out what LLVM has no intrinsic for."""
    joined = {"relax.sinh": relax.op.subtract, "relax.cosh": relax.op.add}.get(op_name(call))
    if joined is None:
        return None
    x = call.args[0]
    both = (scope.emit(relax.op.exp(side)) for side in (x, scope.emit(relax.op.negative(x))))
    return relax.op.multiply(scope.emit(joined(*both)), relax.const(0.5, _dtype(call)))


def whole_power(call: Any, scope: Scope) -> Any:
    """Multiply, which takes less than a power, and of which TVM does not warn."""
    if op_name(call) != "relax.power" or _dtype(call) != "float32":
        return None
    exponent = constant(call.args[1])
    if exponent is None or exponent.size != 1 or float(exponent.item()) not in _POWERS:
        return None
    x, bits = call.args[0], f"{int(exponent.item()):b}"[1:]
    product = x
    for bit in bits:
        product = scope.emit(relax.op.multiply(product, product))
        product = scope.emit(relax.op.multiply(product, x)) if bit == "1" else product
    return product if _shape(call) == _shape(x) else None


def explicit_output_type(call: Any, scope: Scope) -> Any:
    """Say the element type that an operator would choose anyway."""
    del scope
    if op_name(call) == "relax.nn.conv2d" and not call.attrs["out_dtype"]:
        kept = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout")
        options = {key: call.attrs[key] for key in kept}
        return relax.op.nn.conv2d(
            *call.args,
            **options,
            out_layout=call.attrs["out_layout"],
            out_dtype=_dtype(call.args[0]),
        )
    if op_name(call) == "relax.matmul" and not call.attrs["out_dtype"]:
        return relax.op.matmul(*call.args, out_dtype=_dtype(call.args[0]))
    return None


def constant_last(call: Any, scope: Scope) -> Any:
    """Put the constant of a commutative operator second."""
    del scope
    if op_name(call) not in {"relax.add", "relax.multiply"}:
        return None
    left, right = call.args
    if constant(left) is None or constant(right) is not None:
        return None
    return relax.Call(call.op, [right, left])


def global_mean(call: Any, scope: Scope) -> Any:
    """Bring every spelling of global average pooling to `mean`."""
    name = op_name(call)
    if name == "relax.nn.adaptive_avg_pool2d" and call.attrs["layout"] == "NCHW":
        return _adaptive(call)
    if name == "relax.mean" and call.attrs["axis"] is not None:
        axes = [int(axis) for axis in call.attrs["axis"]]
        positive = sorted(axis % len(call.args[0].ty.shape) for axis in axes)
        if axes != positive:
            return relax.op.mean(call.args[0], positive, bool(call.attrs["keepdims"]))
    if name in {"relax.reshape", "relax.squeeze"}:
        inner = scope.value(call.args[0])
        if op_name(inner) == "relax.mean" and inner.attrs["keepdims"] and inner.attrs["axis"]:
            flat = relax.op.mean(inner.args[0], inner.attrs["axis"], keepdims=False)
            if _shape(scope.builder.normalize(flat)) == _shape(call):
                return flat
    return None


def _adaptive(call: Any) -> Any:
    """Windows that take a map apart are those of a plain pooling."""
    sizes, parts = _shape(call.args[0])[2:], _shape(call)[2:]
    if parts == [1, 1]:
        return relax.op.mean(call.args[0], [2, 3], keepdims=True)
    if any(size % part for size, part in zip(sizes, parts, strict=True)):
        return None
    window = [size // part for size, part in zip(sizes, parts, strict=True)]
    return relax.op.nn.avg_pool2d(call.args[0], window, window)


def normalisation(call: Any, scope: Scope) -> Any:
    """Spell normalisations out by differences from a mean, taken twice.

    TVM takes mean(x^2) - mean(x)^2 of some, which is noise, or negative, where a mean is large
    beside its deviations. The second mean takes out what the sums of the first were rounded by:
    equal numbers become zeros. (One axis of a layer is left to TVM, which normalises it by
    differences, in a single kernel.)
    """
    name = op_name(call)
    if name not in _NORMALISATIONS or (name == _LAYER_NORM and len(call.attrs["axes"]) == 1):
        return None
    x, *affine = call.args
    shape, attrs = _shape(x), call.attrs
    axes = sorted(int(axis) % len(shape) for axis in attrs["axes"])
    channels = axes if name == _LAYER_NORM else [int(attrs["channel_axis"]) % len(shape)]
    along = [extent if axis in channels else 1 for axis, extent in enumerate(shape)]
    whole = shape
    if name == "relax.nn.group_norm":
        (channel,), groups = channels, int(attrs["num_groups"])
        whole = [*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :]]
        axes = [channel + 1, *(axis + (axis > channel) for axis in axes)]
        x = scope.emit(relax.op.reshape(x, whole))

    def mean(of: Any) -> Any:
        for axis in axes:  # short sums round less than a long one
            of = scope.emit(relax.op.mean(of, [axis], keepdims=True))
        return of

    for _ in range(2):
        x = scope.emit(relax.op.subtract(x, mean(x)))
    variance = mean(scope.emit(relax.op.multiply(x, x)))
    epsilon = relax.const(float(attrs["epsilon"]), _dtype(call))
    scale = scope.emit(relax.op.rsqrt(scope.emit(relax.op.add(variance, epsilon))))
    x = relax.op.multiply(x, scale)
    if whole != shape:
        x = relax.op.reshape(scope.emit(x), shape)
    gamma, beta = (scope.emit(relax.op.reshape(values, along)) for values in affine)
    x = relax.op.multiply(scope.emit(x), gamma) if attrs["scale"] else x
    return relax.op.add(scope.emit(x), beta) if attrs["center"] else x


def drop_what_changes_nothing(call: Any, scope: Scope) -> Any:
    """Forward the input of an operator that gives it back.

    Of `nn.dropout` ONNX's importer makes one even in inference; those of training were refused
    before the import.
    """
    if isinstance(call, relax.TupleGetItem):
        dropout = scope.value(call.tuple_value)
        kept = op_name(dropout) == "relax.nn.dropout" and call.index == 0
        return dropout.args[0] if kept else None
    name = op_name(call)
    if name in {"relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.broadcast_to"}:
        return call.args[0] if _shape(call) == _shape(call.args[0]) else None
    if name == "relax.astype":
        return call.args[0] if _dtype(call) == _dtype(call.args[0]) else None
    if name == "relax.permute_dims" and call.attrs["axes"] is not None:
        axes = [int(axis) for axis in call.attrs["axes"]]
        return call.args[0] if axes == sorted(axes) else None
    return None


_POWERS = range(1, 9)
_LAYER_NORM = "relax.nn.layer_norm"
_NORMALISATIONS = {"relax.nn.group_norm", "relax.nn.instance_norm", _LAYER_NORM}

# Before anything is folded: folding computes what it folds. And before the readers of tuples are
# joined with what they read.
FIRST = (wrapped_take, sliced)
RULES = (
    silu,
    hyperbolic,
    whole_power,
    explicit_output_type,
    constant_last,
    global_mean,
    normalisation,
    drop_what_changes_nothing,
)


def _dtype(expression: Any) -> str:
    return str(expression.ty.dtype.dtype)


def _shape(expression: Any) -> list[int]:
    return [int(extent) for extent in expression.ty.shape]
