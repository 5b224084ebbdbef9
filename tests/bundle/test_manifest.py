# SPDX-License-Identifier: Apache-2.0
"""The manifest is read back as it was written, and anything else is refused by name."""

import copy
import json
from typing import Any

import pytest

from tvmattend.bundle.fields import number
from tvmattend.bundle.kernels import KernelLaunch, KernelSchedule, RecordCounts
from tvmattend.bundle.manifest import (
    FileEntry,
    Manifest,
    Versions,
    Weights,
)
from tvmattend.errors import BundleError
from tvmattend.preprocessing import Preprocessing
from tvmattend.runtime import TensorSpec
from tvmattend.target import TargetSpec

ENTRY = FileEntry("0" * 64, 3)
MANIFEST = Manifest(
    model="attendnext",
    classes=2,
    labels=("yes", "no"),
    inputs=(TensorSpec("x", (1, 3, 8, 8), "float32", "NCHW"),),
    outputs=(TensorSpec("y", (1, 2), "float32", "NC"),),
    preprocessing=Preprocessing(10, 8),
    weights=Weights("file", "f" * 64),
    target=TargetSpec("aarch64-linux-gnu", "cortex-a72", ("+crc",), 4),
    cpu_flags=("crc32",),
    threads=4,
    versions=Versions("0.1.0", "0.27.0.post1", "0.1.14.post1"),
    revision=None,
    records=RecordCounts(measured=1, default=2),
    fusion={"dcac": [{"fused": 4}]},
    reference="PyTorch 2.13.0",
    kernels=(
        KernelSchedule(
            "conv", "0f" * 8, "conv2d", 2, "measured", 4, {"tile": 8, "unroll": 0}, 2e6, 4096
        ),
        KernelSchedule("pool", "f0" * 8, "pool", 1, "default", None, {}, 0.0, 64),
        KernelSchedule("head", "ff" * 8, "dense", 1, "default", None, {"tile": 4}, 80.0, 0),
    ),
    launches=(
        KernelLaunch("conv", "0f" * 8, ("stem", "stem.norm")),
        KernelLaunch("pool", "f0" * 8, ()),
        KernelLaunch("conv1", "0f" * 8, ("body",)),
        KernelLaunch("head", "ff" * 8, ("head",)),
    ),
    files={"model.so": ENTRY, "golden.npz": ENTRY, "tvmattend_runtime.py": ENTRY},
)


def test_a_manifest_survives_json() -> None:
    assert Manifest.from_json(json.loads(MANIFEST.dumps())) == MANIFEST


def test_nothing_is_needed_but_the_optional_fields_are_null_and_not_absent() -> None:
    data = MANIFEST.to_json()
    data |= {"labels": None, "classes": None, "preprocessing": None}
    read = Manifest.from_json(data)
    assert (read.labels, read.classes, read.preprocessing) == (None, None, None)
    del data["labels"]
    with pytest.raises(BundleError, match=r"manifest\.labels` is missing"):
        Manifest.from_json(data)


def _set(data: Any, path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        data = data[int(parent) if parent.isdigit() else parent]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("schema", 2, "schema 2"),
        ("schema", 0, "`manifest.schema` is not at least 1"),
        ("schema", "1", "schema"),
        ("model", 3, "model"),
        ("surprise", 1, "surprise"),
        ("classes", True, "classes"),
        ("classes", 0, "classes"),
        ("labels", ["one"], "labels"),
        ("labels", [1, 2], "labels"),
        ("inputs", [], "inputs"),
        ("inputs/0/shape", [1, 0], "shape"),
        ("inputs/0/shape", [1, "3"], "shape"),
        ("inputs/0/dtype", "object", "dtype"),
        ("inputs/0/dtype", "no-such", "dtype"),
        ("preprocessing/crop", 11, "crop"),
        ("preprocessing/std", [1, 0, 1], "std"),
        ("preprocessing/mean", [1, 1], "mean"),
        ("preprocessing/colour", "BGR", "colour"),
        ("preprocessing/interpolation", "cubic", "interpolation"),
        ("target/mtriple", "riscv64-linux-gnu", "mtriple"),
        ("target/num-cores", 0, "num-cores"),
        ("target", [], "target"),
        ("threads", 0, "threads"),
        ("versions/tvm", None, "tvm"),
        ("records/measured", -1, "measured"),
        ("kernels", {}, "kernels"),
        ("kernels", ["conv"], "kernels[0]"),
        ("kernels/0/surprise", 1, "kernels[0].surprise"),
        ("kernels/0/name", None, "kernels[0].name"),
        ("kernels/0/key", 3, "kernels[0].key"),
        ("kernels/1/calls", 0, "kernels[1].calls"),
        ("kernels/0/origin", "guessed", "kernels[0].origin"),
        ("kernels/0/threads", None, "kernels[0].threads"),
        ("kernels/0/threads", 0, "kernels[0].threads"),
        ("kernels/1/threads", 4, "kernels[1].threads"),
        ("kernels/0/point/tile", "8", "kernels[0].point.tile"),
        ("kernels/0/point/tile", True, "kernels[0].point.tile"),
        ("kernels/0/flops", "many", "kernels[0].flops"),
        ("kernels/0/moved", -1, "kernels[0].moved"),
        ("launches", None, "launches"),
        ("launches/0/modules", "stem", "launches[0].modules"),
        ("launches/1/name", 1, "launches[1].name"),
        ("launches/3/key", "00" * 8, "launches[3].key"),
        ("tolerance", 0.0, "tolerance"),
        ("tolerance", float("nan"), "tolerance"),
        ("files/model.so/sha256", "xyz", "sha256"),
        ("files/model.so/size", -1, "size"),
        ("files", {}, "model.so"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(path: str, value: Any, named: str) -> None:
    data = copy.deepcopy(MANIFEST.to_json())
    _set(data, path, value)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(data)
    assert named in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("data", [None, [], "text", 3, {}])
def test_something_else_is_not_a_manifest(data: Any) -> None:
    with pytest.raises(BundleError, match="schema"):
        Manifest.from_json(data)


def test_a_newer_schema_asks_for_a_newer_tvmattend() -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json({**MANIFEST.to_json(), "schema": 2, "invented": "later"})
    assert "newer" in caught.value.hint


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), float("nan"), float("inf"), True, "1", None]
)
def test_what_no_float_can_hold_is_no_number(value: Any) -> None:
    with pytest.raises(BundleError, match="`field` is not a number"):
        number(value, "field")
    assert number(10**300, "field") == 1e300
