# SPDX-License-Identifier: Apache-2.0
"""Relax operators -> the TensorIR computations of `schedules/`, with weights packed for them.

    relax.nn.conv2d (NCHW) -> schedules.winograd_pixels or conv2d_pixels
    relax.nn.conv2d (NHWC) -> schedules.winograd_tiles or conv2d_channels
    relax.nn.avg_pool2d (NCHW) -> schedules.average_pool
    relax.matmul(x, const) -> schedules.dense
    relax.mean over long lines and other axes -> one axis after the other
    relax.nn.softmax (float32, of two axes or more) -> schedules.softmax
    everything else        -> TVM's own

A weight that is not a constant, a dilated convolution or another data layout has TVM's own
computation, which runs, without a register block. A softmax over the only axis has nothing to
share among threads.
"""

from collections.abc import Callable
from typing import Any

from schedules import (
    average_pool,
    conv2d_channels,
    conv2d_pixels,
    dense,
    softmax,
    winograd,
    winograd_pixels,
    winograd_tiles,
)
from schedules.machines import Machine
from tvmattend.expressions import static_shape

Legalization = Callable[[Any, Any], Any]
Computation = Callable[[Any, Any], Any]


def legalizations(machine: Machine) -> dict[str, Legalization]:
    """Map for `LegalizeOps(customize_legalize_map=...)`.

    Args:
        machine: Decides vector lengths, hence packing.
    """
    from tvm import relax
    from tvm.ir import GenericConst

    def conv2d(builder: Any, call: Any) -> Any:
        attrs, weight = call.attrs, call.args[1]
        down, across = (int(step) for step in attrs.strides)
        top, left, bottom, right = (int(step) for step in attrs.padding)
        strides, padding = (down, across), (top, left, bottom, right)
        groups = int(attrs.groups)
        ours = (
            isinstance(weight, GenericConst)
            and attrs.kernel_layout == "OIHW"
            and all(int(step) == 1 for step in attrs.dilation)
            and str(weight.value.dtype) == "float32"
            and attrs.data_layout in {"NCHW", "NHWC"}
        )
        if not ours:
            return _default("relax.nn.conv2d")(builder, call)
        array = weight.value.numpy()
        found, features = None, array.shape[0] // groups
        if winograd.suits(array.shape[1], features, array.shape[2:], strides, padding):
            found = _winograd(attrs, array, call.args[0], machine)
        packed, compute = found or _direct(call, array, machine)
        return builder.call_te(
            compute, call.args[0], relax.const(packed), primfunc_name_hint="conv2d"
        )

    def matmul(builder: Any, call: Any) -> Any:
        x, weight = call.args
        if not (
            isinstance(weight, GenericConst) and len(weight.value.shape) == len(x.ty.shape) == 2
        ):
            return _default("relax.matmul")(builder, call)
        array = weight.value.numpy()

        def compute(x: Any, w: Any) -> Any:
            return dense.dense(x, w, int(array.shape[1]))

        packed = relax.const(dense.pack(array, machine))
        return builder.call_te(compute, x, packed, primfunc_name_hint="dense")

    return {
        "relax.nn.avg_pool2d": _average_pool,
        "relax.nn.conv2d": conv2d,
        "relax.matmul": matmul,
        "relax.mean": lambda builder, call: _mean(builder, call, machine),
        "relax.nn.softmax": _softmax,
    }


def _winograd(attrs: Any, array: Any, x: Any, machine: Machine) -> tuple[Any, Computation] | None:
    """Packed weights, and the computation with them; None where tiles do not suit the map."""
    groups = int(attrs.groups)
    if attrs.data_layout == "NCHW":
        rows = int(x.ty.shape[2])
        if not winograd.cuts(rows):
            return None
        packed = winograd_pixels.pack(array, groups)
        return packed, lambda x, w: winograd_pixels.conv2d(x, w, machine)
    shape = [int(extent) for extent in x.ty.shape]
    tiling = winograd_tiles.tiling_for(shape, array.shape, groups, machine)
    if tiling is None:
        return None
    packed, features = winograd_tiles.pack(array, groups, tiling, machine), array.shape[0] // groups
    return packed, lambda x, w: winograd_tiles.conv2d(x, w, features, tiling, machine)


def _direct(call: Any, array: Any, machine: Machine) -> tuple[Any, Computation]:
    """Packed weights, and the computation with them."""
    attrs = call.attrs
    groups = int(attrs.groups)
    down, across = (int(step) for step in attrs.strides)
    top, left, bottom, right = (int(step) for step in attrs.padding)
    strides, padding = (down, across), (top, left, bottom, right)
    if attrs.data_layout == "NCHW":
        packed = conv2d_pixels.pack(array, groups)
        return packed, lambda x, w: conv2d_pixels.conv2d(x, w, strides, padding, machine)
    features = array.shape[0] // groups
    pixels = int(call.ty.shape[1]) * int(call.ty.shape[2])
    packed = conv2d_channels.pack(array, groups, pixels, machine)
    return packed, lambda x, w: conv2d_channels.conv2d(x, w, features, strides, padding)


def _average_pool(builder: Any, call: Any) -> Any:
    (x,), attrs = call.args, call.attrs
    ours = (
        static_shape(x) is not None
        and str(x.ty.dtype) == "float32"
        and str(attrs.layout) == str(attrs.out_layout) == "NCHW"
        and not bool(attrs.ceil_mode)
        and all(int(step) == 1 for step in attrs.dilation)
        and (bool(attrs.count_include_pad) or not any(int(side) for side in attrs.padding))
    )
    if not ours:
        return _default("relax.nn.avg_pool2d")(builder, call)
    kh, kw = (int(extent) for extent in attrs.pool_size)
    down, across = (int(step) for step in attrs.strides)
    top, left, bottom, right = (int(side) for side in attrs.padding)

    def compute(x: Any) -> Any:
        padding = (top, left, bottom, right)
        return average_pool.average_pool(x, (kh, kw), (down, across), padding)

    return builder.call_te(compute, x, primfunc_name_hint="avg_pool2d")


def _mean(builder: Any, call: Any, machine: Machine) -> Any:
    """Long lines last: sums over the other axes are in vectors of them, which soon add up.

    Lines of 14 pixels gained nothing, on a Cortex-A72 lines of 28.
    """
    from tvm import relax

    (x,), attrs, one = call.args, call.attrs, _default("relax.mean")
    shape = static_shape(x)
    axes = [] if shape is None or attrs.axis is None else sorted(int(axis) for axis in attrs.axis)
    long = 24 if machine.lanes > 4 else 48
    if shape is None or len(axes) < 2 or axes[-1] != len(shape) - 1 or shape[-1] < long:
        return one(builder, call)
    keep = bool(attrs.keepdims)
    for gone, axis in enumerate(axes[:-1]):
        step = relax.op.mean(x, [axis if keep else axis - gone], keepdims=keep)
        x = builder.emit(one(builder, builder.normalize(step)))
    return one(builder, builder.normalize(relax.op.mean(x, [-1], keepdims=keep)))


def _softmax(builder: Any, call: Any) -> Any:
    (x,) = call.args
    shape = static_shape(x)
    if shape is None or len(shape) < 2 or str(x.ty.dtype) != "float32":
        return _default("relax.nn.softmax")(builder, call)
    axis = int(call.attrs.axis) % len(shape)
    return builder.call_te(lambda x: softmax.softmax(x, axis), x, primfunc_name_hint="softmax")


def _default(name: str) -> Legalization:
    """TVM's own legalization of an operator."""
    from tvm.ir import Op

    legalize: Legalization = Op.get(name).get_attr("FLegalize")
    return legalize
