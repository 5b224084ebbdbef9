# SPDX-License-Identifier: Apache-2.0
"""What a user asks to be imported, and all that can be checked without torch or TVM."""

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvmattend.errors import ModelError, WeightsError
from tvmattend.models import DEFAULT, REGISTRY, layers, lookup

Source = Literal["registry", "factory", "pt2", "onnx"]

_FACTORY = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
MOST = 2**31 - 1  # of an extent: kernels count in 32 bits
_FORMS = "a name of `tvmattend models`, package.module:factory, a .pt2 or an .onnx file"


@dataclass(frozen=True)
class ModelRequest:
    """A network to import.

    Attributes:
        model: A name of the registry, `package.module:factory`, or the path of a `.pt2` or
            `.onnx` file.
        weights: A state dict (`.pt`, `.pth`, `.bin`, `.ckpt`) or `.safetensors` file; None keeps
            the seeded weights (registry) or the factory's own.
        num_classes: Classes of the head; None keeps the network's own.
        input_size: Height and width of the input in pixels; None keeps the network's own.
        batch: Images in a batch; None keeps what a file fixes, and is 1 elsewhere.
        seed: Of the weights that are not loaded.
    """

    model: str = DEFAULT
    weights: Path | None = None
    num_classes: int | None = None
    input_size: int | None = None
    batch: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, request: "ModelRequest | str") -> "ModelRequest":
        """Take a request as it is, and a string for the request of the model that it names."""
        return cls(request) if isinstance(request, str) else request

    @property
    def source(self) -> Source:
        """Which kind of thing `model` is.

        Raises:
            ModelError: It is none of them.
        """
        path = Path(self.model)
        suffix = path.suffix.lower()
        if suffix in {".pt2", ".onnx"}:
            return "pt2" if suffix == ".pt2" else "onnx"
        if suffix in _WEIGHT_SUFFIXES:
            raise ModelError(
                f"`{self.model}` holds weights, not a network",
                f"name the network with --model and add --weights {self.model}",
            )
        if ":" in self.model:
            return "factory"
        if self.model and path.exists() and self.model not in REGISTRY:
            raise ModelError(
                f"`{self.model}` is not a network that can be imported", f"give {_FORMS}"
            )
        if "." in self.model:
            module, _, name = self.model.rpartition(".")
            raise ModelError(
                f"no network is called `{self.model}`",
                f"for a factory write `{module}:{name}`; for a file give its .pt2 or .onnx path",
            )
        lookup(self.model)
        return "registry"

    @property
    def name(self) -> str:
        """A name fit for a directory: `attendnext`, `package_module_factory`, a file's stem."""
        text = Path(self.model).stem if self.source in {"pt2", "onnx"} else self.model
        return re.sub(r"[^A-Za-z0-9_+-]+", "_", text).strip("_") or "model"

    @property
    def images(self) -> int:
        """Images in a batch where no file fixes them."""
        return 1 if self.batch is None else self.batch

    def check(self) -> None:
        """Check everything that needs neither torch nor TVM; takes milliseconds.

        Raises:
            ModelError: An unknown or malformed model, or an option out of range or out of place.
            WeightsError: A weights file that does not exist or is of an unknown type.
        """
        source = self.source
        self._check_numbers()
        if source == "registry":
            layers(lookup(self.model), self.num_classes, self.input_size)
        elif source == "factory":
            self._check_factory()
        else:
            self._check_file(source)
        if self.weights is not None:
            self._check_weights(self.weights)

    def factory_parts(self) -> tuple[str, str]:
        """Split `package.module:factory`.

        Raises:
            ModelError: The text has another form.
        """
        match = _FACTORY.fullmatch(self.model)
        if match is None:
            raise ModelError(
                f"`{self.model}` is not of the form package.module:factory",
                "e.g. --model mynets.small:build, importable from the current directory",
            )
        return match[1], match[2]

    def _check_numbers(self) -> None:
        for option, value, least, most in (
            ("--num-classes", self.num_classes, 1, MOST),
            ("--input-size", self.input_size, 1, MOST),
            ("--batch", self.batch, 1, MOST),
            ("--seed", self.seed, 0, 2**63 - 1),
        ):
            if value is not None and not least <= value <= most:
                raise ModelError(f"{option} {value} is out of range", f"give {least} to {most}")

    def _check_factory(self) -> None:
        module, factory = self.factory_parts()
        if module.endswith(".py"):
            raise ModelError(
                f"`{self.model}` names a file, not a module",
                f"write `{module.removesuffix('.py')}:{factory}`",
            )
        top = module.partition(".")[0]
        with importable_from_here():
            # Finding a top-level module does not run it; its parts are found when it is imported.
            found = top in sys.modules or importlib.util.find_spec(top) is not None
        if not found:
            raise ModelError(
                f"there is no Python module `{top}` for `{self.model}`",
                "run from the directory that holds it, or install it",
            )

    def _check_file(self, source: Source) -> None:
        path = Path(self.model)
        if not path.is_file():
            raise ModelError(f"there is no file `{self.model}`", f"give {_FORMS}")
        if path.stat().st_size == 0:
            raise ModelError(f"`{self.model}` is empty", "export the network again")
        for option, value in (("--weights", self.weights), ("--num-classes", self.num_classes)):
            if value is not None:
                raise ModelError(
                    f"{option} does not go with `{self.model}`",
                    f"an .{source} file brings its own weights and head: leave the option out",
                )

    def _check_weights(self, weights: Path) -> None:
        if weights.suffix.lower() not in _WEIGHT_SUFFIXES:
            raise WeightsError(
                f"`{weights}` is not a weights file",
                f"its name must end in {', '.join(_WEIGHT_SUFFIXES)}",
            )
        if not weights.is_file():
            raise WeightsError(f"there is no weights file `{weights}`", "check the path")


@contextmanager
def importable_from_here() -> Iterator[None]:
    """Let modules of the current directory be imported, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
