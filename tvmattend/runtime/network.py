# SPDX-License-Identifier: Apache-2.0
"""Run a tvmattend bundle: numpy arrays in, numpy arrays out.

    from tvmattend_runtime import load      # where tvmattend is installed: tvmattend.runtime

    net = load("path/of/the/bundle")        # checks every file, then loads the library
    y = net(x)
    net.classify("photo.jpg", top=5)        # [(class_index, label, probability), ...]
    net.self_test()                         # against the reference outputs in the bundle

In a bundle, `tvmattend_runtime.py` is this module and those that it imports, joined into one file.
It needs Python 3.9 and numpy (Pillow, to open image files); for a bundle of the format `vm` also
the apache-tvm-ffi wheel, for a `standalone` one `standalone.py` (`tvmattend_standalone.py` there).
To require a signature it needs `cryptography` and `signature.py` (`tvmattend_signature.py`); an
application that does so keeps these files itself, for those in a bundle are its maker's.
Every error carries `exit_code` and `hint`.
"""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from tvmattend.runtime.contents import (
    AGAIN,
    SCHEMA,
    Code,
    check_files,
    file_content,
    file_sha256,
    manifest_bytes,
    read_manifest,
)
from tvmattend.runtime.executors import LocalLibrary, LocalVM
from tvmattend.runtime.faults import (
    BundleError,
    BundleMismatchError,
    DeviceError,
    InputError,
    SignatureError,
    ToolMissingError,
    ValidationError,
)
from tvmattend.runtime.images import preprocess
from tvmattend.runtime.process import check_machine, load_runtime
from tvmattend.runtime.tensors import TensorSpec, checked, relative_error, tensor_specs

__all__ = [
    "SCHEMA", "BundleError", "BundleMismatchError", "DeviceError", "InputError", "Network",
    "Prediction", "SignatureError", "TensorSpec", "ToolMissingError", "ValidationError",
    "check_files", "check_machine", "file_content", "file_sha256", "load", "manifest_bytes",
    "preprocess", "read_manifest", "relative_error", "tensor_specs",
]  # fmt: skip

# What numpy, zipfile and zlib make of an archive that is none.
NOT_NPZ = (
    OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error, MemoryError, RuntimeError,
    NotImplementedError, IndexError, SyntaxError, TypeError, OverflowError,
)  # fmt: skip


class Prediction(NamedTuple):
    """One class of an image; `label` is None where the bundle has no labels."""

    class_index: int
    label: str | None
    probability: float


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    require_signature: str | os.PathLike[str] | bytes | None = None,
) -> Network:
    """Load a bundle; every file is checked before anything of it is loaded.

    Args:
        path: The bundle's directory.
        threads: Threads that run the kernels; by default as many as the bundle was compiled for,
            or as the CPUs that this process may use if those are fewer (a standalone one: as 64).
        require_signature: An Ed25519 public key: a file (PEM or OpenSSH), or as `bytes` its
            content. Without the signature of that key over the manifest nothing is loaded, and
            code is loaded from a copy in memory, which nobody can change behind the check.

    Raises:
        BundleError: A file is missing, damaged or not the bundle's.
        BundleMismatchError: Made for another architecture, CPU, or version of the runtime.
        SignatureError: The signature is missing or another's, or the key cannot be read.
        InputError: More threads than CPUs.
        ToolMissingError: apache-tvm-ffi is not installed, or `cryptography` for a signature.
    """
    directory = Path(path)
    manifest = read_manifest(directory, require_signature)
    check_files(directory, manifest["files"])
    check_machine(manifest["target"], manifest["cpu_flags"])
    cpus = len(os.sched_getaffinity(0))
    if threads is not None and not (_is_integer(threads) and 1 <= threads <= cpus):
        raise InputError(
            f"threads={threads!r}, but this process may use {cpus} CPU{'s' * (cpus > 1)}",
            f"give a whole number from 1 to {cpus}",
        )
    code = Code(directory, manifest["files"], private=require_signature is not None)
    if manifest["format"] == "standalone":
        # By default the library counts itself: it knows how many threads it can have.
        return Network(directory, manifest, LocalLibrary(code, manifest, int(threads or 0)))
    tvm_ffi = load_runtime(code, manifest)
    count = int(threads or min(int(manifest["threads"]), cpus))
    return Network(directory, manifest, LocalVM(tvm_ffi, code, manifest, count))


class Network:
    """A loaded bundle.

    Any Python thread may call it: a virtual machine is not reentrant, so calls are queued.

    Attributes:
        manifest: manifest.json, as plain data.
        inputs: What `net(...)` takes, in order.
        outputs: What it gives, in order.
        threads: Threads that run the kernels.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], executor: Any) -> None:
        """Join a bundle and what executes it: in this process, or on a board over RPC."""
        self.manifest = manifest
        self.inputs = tensor_specs(manifest["inputs"])
        self.outputs = tensor_specs(manifest["outputs"])
        self.threads: int = executor.threads
        self._directory = directory
        self._executor = executor

    def __call__(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run the network: one array for each of `inputs`; gives one array, or a tuple of them.

        Raises:
            InputError: An array is of another shape, dtype or layout.
        """
        results = self._executor.run(self._fit(arrays))
        return results[0] if len(results) == 1 else tuple(results)

    def classify(self, image: Any, top: int = 5) -> list[Prediction]:
        """Name what an image (see `preprocess`) shows, the `top` likeliest first."""
        return self.ranked(self(self.preprocess(image)), top)

    def preprocess(self, image: Any) -> np.ndarray:
        """Make the network's input from an image, by the manifest's recipe."""
        recipe = self.manifest["preprocessing"]
        if recipe is None:
            raise InputError(
                f"the bundle of {self.manifest['model']} does not say what an image becomes",
                "give an array (an .npy file); or build with --mean and --std",
            )
        if not self._takes_an_image():
            raise InputError(f"{self.manifest['model']} does not take one image", "give an array")
        return preprocess(image, recipe)

    def ranked(
        self, outputs: np.ndarray | tuple[np.ndarray, ...], top: int = 5
    ) -> list[Prediction]:
        """Make probabilities of the first output (softmax; sigmoid if it is one number)."""
        if not _is_integer(top) or top < 1:
            raise InputError(f"top={top!r} is no number of classes", "give 1 or more")
        logits = np.ravel(outputs[0] if isinstance(outputs, tuple) else outputs).astype(np.float64)
        powers = np.exp(logits - np.max(logits))
        shares = powers / powers.sum() if logits.size > 1 else (1 + np.tanh(logits / 2)) / 2
        # By score: shares of widely spread scores all round to 0.
        order = np.argsort(-logits, kind="stable")[:top]
        labels = self.manifest["labels"]
        names = dict(enumerate(labels or ()))
        return [Prediction(int(i), names.get(int(i)), float(shares[i])) for i in order]

    def golden(self) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
        """Read the golden vectors: a pair (inputs, reference outputs) each.

        Raises:
            BundleError: They are not there, or do not fit the network.
        """
        content = file_content(self._directory, "golden.npz", self.manifest["files"])
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                given = [archive[f"input{i}"] for i in range(len(self.inputs))]
                wanted = [archive[f"output{i}"] for i in range(len(self.outputs))]
        except NOT_NPZ as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BundleError(f"golden.npz does not hold the vectors: {reason}", AGAIN) from error
        count = len(given[0]) if given[0].ndim else 0
        for spec, stack in zip(self.inputs + self.outputs, given + wanted):  # noqa: B905
            if not count or stack.shape != (count, *spec.shape) or stack.dtype != spec.dtype:
                raise BundleError(f"golden.npz: the vectors of `{spec.name}` do not fit it", AGAIN)
        return [([x[k] for x in given], [y[k] for y in wanted]) for k in range(count)]

    def golden_errors(self) -> list[float]:
        """Run the golden vectors; give the relative error of each, over all outputs."""
        pairs = ((self._executor.run(self._fit(x)), y) for x, y in self.golden())
        return [max(map(relative_error, results, references)) for results, references in pairs]

    def self_test(self) -> list[float]:
        """Give `golden_errors()`, all within the manifest's tolerance.

        Raises:
            ValidationError: One is above it.
        """
        errors, tolerance = self.golden_errors(), float(self.manifest["tolerance"])
        worst = max(errors)
        if worst > tolerance:
            raise ValidationError(
                f"golden vector {errors.index(worst)}: error {worst:.1e} > {tolerance:.0e}",
                "the library does not compute this network here: build the bundle again",
            )
        return errors

    def time(self, *arrays: np.ndarray, repeat: int = 10, warmup: int = 2) -> list[float]:
        """Give the seconds of `repeat` runs after `warmup` others; copies are not timed."""
        seconds: list[float] = self._executor.time(self._fit(arrays), repeat, warmup)
        return seconds

    def _fit(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(arrays) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"{len(arrays)} inputs given", f"the network takes: {names}")
        photo = self._takes_an_image()
        return [checked(spec, array, photo) for spec, array in zip(self.inputs, arrays)]  # noqa: B905

    def _takes_an_image(self) -> bool:
        one = len(self.inputs) == 1 and self.inputs[0].shape[0] == 1
        return one and self.manifest["preprocessing"] is not None


def _is_integer(value: Any) -> bool:
    """Whether it is an integer, Python's or numpy's; True is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _main() -> None:
    """On the device: name what the images given show; without any, test the bundle."""
    try:
        net = load(Path(__file__).resolve().parent)
        for image in sys.argv[1:]:
            for index, label, share in net.classify(image):
                print(f"{image}\t{index}\t{label or ''}\t{share:.4f}")  # noqa: T201
        if not sys.argv[1:]:
            print(f"passed; relative errors {net.self_test()}")  # noqa: T201
    except DeviceError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"error: {error}{hint}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _main()
