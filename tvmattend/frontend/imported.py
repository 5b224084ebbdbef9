# SPDX-License-Identifier: Apache-2.0
"""What an import gives: the canonical module, and all that a bundle must say about it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmattend.preprocessing import Preprocessing

Arrays = Sequence["np.ndarray[Any, Any]"]

# Patches a side of a drawn image.
_PATCHES = 5


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a network.

    Attributes:
        name: The name that the network gives it.
        shape: Static, in elements.
        dtype: NumPy's name of the element type.
        layout: `NCHW` for images, `NC` for scores, empty where unknown.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""


@dataclass(frozen=True)
class ImportedModel:
    """A network in its canonical form.

    Attributes:
        name: Fit for a directory.
        ir_module: Relax, one function `main`, inference only, BatchNorm folded, weights inside,
            NCHW.
        inputs: In the order of `main`'s parameters.
        outputs: One, or the fields of the tuple that `main` returns.
        classes: Columns of the first output if it is a table of scores, else None.
        preprocessing: For networks of the registry; None where nobody said.
        weights: Where the weights come from, in words.
        weights_sha256: Of the weights file, or of the model file that brought them; of an ONNX
            model together with the files that it keeps weights in, in the order of their names.
        seed: Of the weights, if they are seeded.
        reference_name: What computes the reference, with its version.
        module_paths: Variable of `main` -> path of the PyTorch module that it comes from.
    """

    name: str
    ir_module: Any = field(repr=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: int | None
    preprocessing: Preprocessing | None
    weights: str
    weights_sha256: str | None
    seed: int | None
    reference_name: str
    module_paths: Mapping[str, str] = field(repr=False)
    run_reference: Callable[[Arrays], list["np.ndarray[Any, Any]"]] = field(repr=False)

    def reference(self, inputs: Arrays) -> list["np.ndarray[Any, Any]"]:
        """Run the original network, not the imported one; what it prints goes to standard error.

        Args:
            inputs: One array an input, of the shapes and dtypes of `self.inputs`.

        Returns:
            One array an output.
        """
        with redirect_stdout(sys.stderr):
            return self.run_reference(inputs)

    def sample_inputs(
        self, count: int = 1, seed: int = 0
    ) -> list[tuple["np.ndarray[Any, Any]", ...]]:
        """Draw seeded inputs, the same on every machine.

        Args:
            count: Sets of inputs.
            seed: Of the draw.

        Returns:
            `count` tuples of one array an input: patches and grain of the order 1 for images
            (noise alone the pools of a network average away), standard normal for other floating
            types, and 0 and 1 for integers.
        """
        random = np.random.default_rng(seed)
        return [tuple(_draw(random, spec) for spec in self.inputs) for _ in range(count)]


def _draw(random: np.random.Generator, spec: TensorSpec) -> "np.ndarray[Any, Any]":
    if not np.issubdtype(np.dtype(spec.dtype), np.floating):
        return random.integers(0, 2, spec.shape).astype(spec.dtype)
    noise = random.standard_normal(spec.shape)
    if spec.layout != "NCHW":
        return noise.astype(spec.dtype)
    batch, channels, height, width = spec.shape
    patches = random.standard_normal((batch, channels, _PATCHES, _PATCHES))
    rows = np.arange(height) * _PATCHES // height
    columns = np.arange(width) * _PATCHES // width
    contrast = random.uniform(0.5, 1.5, (batch, 1, 1, 1))
    image = contrast * patches[:, :, rows][:, :, :, columns] + 0.3 * noise
    return np.asarray(image.astype(spec.dtype))
