# SPDX-License-Identifier: Apache-2.0
"""Small Relax modules of attention condensers, and a way to run a lowered module."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmattend.codegen.compile import compile_module
from tvmattend.codegen.schedule import schedule_kernels
from tvmattend.target import parse_target
from tvmattend.tuning.records import RecordSet

HOST = parse_target("host", 1)


@dataclass
class Emitter:
    """Emits operators with weights of its own into a function that is being built."""

    layout: str = "NCHW"
    bias: bool = True
    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def weight(self, *shape: int) -> Any:
        return relax.const(self.random.standard_normal(shape).astype("float32") * 0.3)

    def emit(self, value: Any, name: str = "") -> Any:
        return self.builder.emit(value, name)

    def channels(self, x: Any) -> int:
        return int(x.ty.shape[self.layout.index("C")])

    def conv(
        self, x: Any, channels: int, kernel: int, groups: int = 1, name: str = "", **options: Any
    ):
        weight = options.pop("weight", None)
        if weight is None:
            weight = self.weight(channels, self.channels(x) // groups, kernel, kernel)
        options = {"padding": kernel // 2, "data_layout": self.layout, **options}
        y = relax.op.nn.conv2d(x, weight, groups=groups, kernel_layout="OIHW", **options)
        y = self.emit(y, name)
        if self.bias:
            shape = [1, channels, 1, 1] if self.layout == "NCHW" else [1, 1, 1, channels]
            y = self.emit(relax.op.add(y, self.weight(*shape)), f"{name}_norm")
        return y

    def pool(
        self,
        x: Any,
        kind: str,
        size: int = 2,
        stride: int | None = None,
        name: str = "pool",
        dilation: int = 1,
    ):
        operator = relax.op.nn.avg_pool2d if kind == "avg" else relax.op.nn.max_pool2d
        strides, steps = [stride or size] * 2, [dilation] * 2
        pooled = operator(x, [size, size], strides, dilation=steps, layout=self.layout)
        return self.emit(pooled, name)

    def act(self, x: Any, name: str = "") -> Any:
        return self.emit(relax.op.nn.silu(x), name)


def module(
    body: Callable[[Emitter, Any], Any], shape: tuple[Any, ...], emitter: Emitter | None = None
) -> tvm.IRModule:
    """A module whose `main` is what `body` emits; `body` gives the output or a tuple of outputs."""
    emitter = emitter or Emitter()
    builder = emitter.builder
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(body(emitter, x))
        builder.emit_func_output(out)
    # As the importer leaves it: the output is the last computation, not another name of it.
    return relax.transform.CanonicalizeBindings()(builder.get())


@dataclass(frozen=True)
class Block:
    """An attention condenser, and the ways in which it can fail to be one."""

    kind: str = "basic"
    classical: bool = False
    condense: str | None = "avg"
    gate: str = "softmax"
    scale: float | None = None
    scaled: str = "product"
    residual: bool = False
    residual_of_input: bool = False
    features_first: bool = False
    activation: bool = True
    inner_activations: bool = True
    projected: bool = True
    bias: bool = True
    layout: str = "NCHW"
    width: int = 12
    channels: int = 12
    incoming: int = 8
    size: tuple[Any, ...] = (8, 8)
    batch: int = 1
    columns: int = 4
    # The faults.
    expand_columns: int | None = None
    axis: int | None = None
    feature_pool: tuple[str, int] | None = None
    pool_stride: int | None = None
    pool_dilations: tuple[int, int] = (1, 1)
    second_user: str = ""
    stride: int = 1
    dilation: int = 1
    weight_is_input: bool = False
    other_features: bool = False
    project_kernel: int = 1
    two_projections: bool = False
    four_embeddings: bool = False
    upsample: str = "nearest_neighbor"

    def with_(self, **changes: Any) -> "Block":
        return replace(self, **changes)

    def module(self) -> tvm.IRModule:
        shape = (self.batch, self.incoming, *self.size)
        if self.layout == "NHWC":
            shape = (self.batch, *self.size, self.incoming)
        return module(self.emit, shape, Emitter(self.layout, self.bias))

    def emit(self, e: Emitter, x: Any) -> Any:
        seen = {"input": x}
        own = x
        if self.kind == "bottleneck":
            own = seen["reduce"] = self._act(e, e.conv(x, self.width, 1, name="reduce"), "reduced")
        shared = x
        if self.condense:
            own = seen["condense"] = e.pool(
                own, self.condense, stride=self.pool_stride, dilation=self.pool_dilations[0]
            )
            shared = own if own is not x and self.kind == "basic" else x
            if self.kind == "bottleneck" or self.feature_pool:
                kind, size = self.feature_pool or (self.condense, 2)
                shared = e.pool(
                    x, kind, size, self.pool_stride, "pool_features", self.pool_dilations[1]
                )
        attention = seen["embed"] = self._attention(e, own)
        if self.other_features:
            shared = e.emit(relax.op.tanh(e.emit(relax.op.exp(shared))), "elsewhere")
        features = shared
        if self.projected:
            features = e.conv(shared, self.channels, self.project_kernel, name="project")
        if self.two_projections:
            features = e.conv(features, self.channels, 1, name="project_again")
        seen["project"] = features
        if self.gate == "softmax":
            axis = self.layout.index("C") if self.axis is None else self.axis
            gate = e.emit(relax.op.nn.softmax(attention, axis), "gate")
        else:
            gate = e.emit(relax.op.sigmoid(attention), "gate")
        seen["gate"] = gate
        terms = {"gate": gate, "features": features}
        if self.scale is not None and self.scaled in terms:
            terms[self.scaled] = e.emit(self._scale(terms[self.scaled]), "scaled")
        operands = (terms["features"], terms["gate"])
        operands = operands if self.features_first else operands[::-1]
        y = e.emit(relax.op.multiply(*operands), "select")
        if self.scale is not None and self.scaled == "product":
            y = e.emit(self._scale(y), "scaled")
        if self.residual or self.residual_of_input:
            kept = x if self.residual_of_input else features
            operands = (kept, y) if self.features_first else (y, kept)
            y = e.emit(relax.op.add(*operands), "kept")
        y = e.act(y, "out") if self.activation else y
        if self.second_user:
            return relax.Tuple([y, e.emit(relax.op.exp(seen[self.second_user]), "other")])
        return y

    def _act(self, e: Emitter, value: Any, name: str) -> Any:
        return e.act(value, name) if self.inner_activations else value

    def _scale(self, value: Any) -> Any:
        return relax.op.multiply(value, relax.const(np.float32(self.scale)))

    def _attention(self, e: Emitter, own: Any) -> Any:
        options: dict[str, Any] = {"strides": self.stride, "dilation": self.dilation}
        if self.dilation > 1:
            options["padding"] = self.dilation
        if self.weight_is_input:
            shape = (self.width, e.channels(own) // self.columns, 3, 3)
            options["weight"] = e.emit(relax.op.zeros(shape, "float32"), "weights")
        size = list(own.ty.shape)[slice(2, 4) if self.layout == "NCHW" else slice(1, 3)]
        key = e.pool(own, "max", name="query") if self.classical else own
        key = e.conv(key, self.width, 3, self.columns, "embed", **options)
        key = self._act(e, key, "embedded")
        for _ in range(3 if self.four_embeddings else 0):
            key = e.act(e.conv(key, self.width, 3, self.columns))
        if self.classical:
            key = self._act(e, e.conv(key, self.width, 1, name="mix"), "mixed")
            resize = relax.op.image.resize2d(
                key,
                relax.ShapeExpr(size),
                layout=self.layout,
                method=self.upsample,
                coordinate_transformation_mode="asymmetric",
                rounding_method="floor",
            )
            return e.conv(e.emit(resize, "upsample"), self.channels, 1, name="expand")
        if self.kind == "bottleneck":
            return e.conv(key, self.channels, 1, self.expand_columns or 1, "expand")
        return e.conv(key, self.channels, 3, self.expand_columns or self.columns, "expand")


CLASSICAL = Block(classical=True, condense="max", gate="sigmoid", scale=0.7, residual=True)


def sample(mod: tvm.IRModule, seed: int = 0) -> np.ndarray:
    shape = [int(extent) for extent in mod["main"].params[0].ty.shape]
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def run(lowered: tvm.IRModule, x: np.ndarray) -> np.ndarray:
    """Schedule by default points, compile for this machine, and run."""
    scheduled = schedule_kernels(lowered, HOST, RecordSet()).mod
    return execute(compile_module(scheduled, HOST), x)


def execute(executable: Any, x: np.ndarray) -> np.ndarray:
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Greatest error relative to the greatest value: what the manifest's tolerance means too."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
