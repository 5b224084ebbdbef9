# SPDX-License-Identifier: Apache-2.0
"""Run a Relax module on this machine with TVM's own default schedules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmattend.frontend import ImportedModel


def run_relax(module: tvm.ir.IRModule, inputs: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    executable = tvm.compile(module, target=tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    output = machine["main"](*[tvm.runtime.tensor(np.asarray(array)) for array in inputs])
    outputs = [output] if hasattr(output, "numpy") else list(output)
    return [tensor.numpy() for tensor in outputs]


def relative_error(model: ImportedModel, seed: int = 0) -> float:
    """Largest max|y - ref| / max|ref| over the outputs, for one set of seeded inputs."""
    (inputs,) = model.sample_inputs(1, seed)
    expected = model.reference(inputs)
    actual = run_relax(model.ir_module, inputs)
    assert [array.shape for array in actual] == [array.shape for array in expected]
    assert [array.shape for array in actual] == [spec.shape for spec in model.outputs]
    return max(
        float(np.abs(a - e).max() / np.abs(e).max()) for a, e in zip(actual, expected, strict=True)
    )
