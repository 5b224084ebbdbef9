# SPDX-License-Identifier: Apache-2.0
"""A small network, compiled here in a second, and bundles of it; its reference is numpy's."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.bundle import BundleContents, RecordCounts, Weights, write_bundle
from tvmattend.codegen.link import Linker
from tvmattend.preprocessing import Preprocessing
from tvmattend.runtime import TensorSpec
from tvmattend.runtime.network import file_sha256
from tvmattend.target import TargetSpec, host_target, parse_target

LABELS = ("cat", "dog", "jackal", "teapot", "violin")
INPUT = TensorSpec("image", (1, 3, 16, 16), "float32", "NCHW")
OUTPUT = TensorSpec("logits", (1, 5), "float32", "NC")
RECIPE = Preprocessing(resize=18, crop=16)


@functools.cache
def weights() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    kernel = random.standard_normal((8, 3, 3, 3)).astype("float32")
    return kernel, random.standard_normal((8, 5)).astype("float32")


def reference(x: np.ndarray) -> np.ndarray:
    """Give conv 3x3, ReLU, global average, linear; in numpy, in double precision."""
    kernel, linear = weights()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))).astype("float64")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    features = np.einsum("nchwij,ocij->nohw", windows, kernel)
    return (np.maximum(features, 0).mean((2, 3)) @ linear).astype("float32")


def relax_module() -> Any:
    from tvm import relax

    kernel, linear = weights()
    builder = relax.BlockBuilder()
    x = relax.Var("image", relax.TensorType(INPUT.shape, INPUT.dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(kernel), padding=1))
            y = builder.emit(relax.op.nn.relu(y))
            y = builder.emit(relax.op.mean(y, axis=[2, 3]))
            out = builder.emit_output(relax.op.matmul(y, relax.const(linear)))
        builder.emit_func_output(out)
    return builder.get()


def compile_library(module: Any, target: TargetSpec, path: Path) -> Path:
    import tvm

    executable = tvm.compile(module, target=target.to_tvm())
    executable.export_library(str(path), fcompile=Linker(target))
    return path


def sample_contents(directory: Path, target: TargetSpec) -> BundleContents:
    """Compile the network and give what a build would hand to the writer."""
    random = np.random.default_rng(1)
    xs = [random.standard_normal(INPUT.shape).astype("float32") for _ in range(3)]
    return BundleContents(
        library=compile_library(relax_module(), target, directory / f"{target.arch}.so"),
        target=target,
        model="sample",
        inputs=[INPUT],
        outputs=[OUTPUT],
        golden=[([x], [reference(x)]) for x in xs],
        reference="numpy",
        weights=Weights("seed 5", seed=5),
        records=RecordCounts(default=4),
        classes=len(LABELS),
        labels=LABELS,
        preprocessing=RECIPE,
        fusion={"conv2d": 1},
    )


def host_contents(directory: Path) -> BundleContents:
    return sample_contents(directory, host_target(threads=1))


def cortex_a72_bundle(directory: Path) -> Path:
    contents = sample_contents(directory, parse_target("cortex-a72"))
    return write_bundle(directory / "sample-cortex-a72", contents)


def rewrite_manifest(bundle: Path, **changes: Any) -> None:
    """Change fields of manifest.json, as someone who knows what they do would."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def rehash(bundle: Path) -> None:
    """Make the manifest agree with the files as they are now."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    for name in files:
        path = bundle / name
        files[name] = {"sha256": file_sha256(path), "size": path.stat().st_size}
    rewrite_manifest(bundle, files=files)


def with_target(contents: BundleContents, **changes: Any) -> BundleContents:
    return replace(contents, target=replace(contents.target, **changes))


def two_by_two(directory: Path) -> BundleContents:
    """Compile a network that gives the sum and the difference of its two inputs."""
    from tvm import relax

    def body(builder: Any, a: Any, b: Any) -> Any:
        pair = [builder.emit(relax.op.add(a, b)), builder.emit(relax.op.subtract(a, b))]
        return relax.Tuple(pair)

    random = np.random.default_rng(2)
    vectors = [random.standard_normal((2, 2, 3)).astype("float32") for _ in range(2)]
    golden = [([x, y], [x + y, x - y]) for x, y in vectors]
    return _small("two-by-two", body, golden, directory)


def echo(directory: Path) -> BundleContents:
    """Compile a network that gives its input back, beside twice its input."""
    from tvm import relax

    def body(builder: Any, x: Any) -> Any:
        return relax.Tuple([x, builder.emit(relax.op.add(x, x))])

    x = np.ones((2, 3), "float32")
    return _small("echo", body, [([x], [x, 2 * x])], directory)


def _small(model: str, body: Any, golden: list[Any], directory: Path) -> BundleContents:
    from tvm import relax

    inputs, outputs = (
        [TensorSpec(f"{kind}{i}", array.shape, "float32", "") for i, array in enumerate(arrays)]
        for kind, arrays in zip(("in", "out"), golden[0], strict=True)
    )
    variables = [relax.Var(spec.name, relax.TensorType(spec.shape, spec.dtype)) for spec in inputs]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            out = builder.emit_output(body(builder, *variables))
        builder.emit_func_output(out)
    target = host_target(threads=1)
    return BundleContents(
        library=compile_library(builder.get(), target, directory / f"{model}.so"),
        target=target,
        model=model,
        inputs=inputs,
        outputs=outputs,
        golden=golden,
        reference="numpy",
        weights=Weights("none"),
        records=RecordCounts(),
    )
