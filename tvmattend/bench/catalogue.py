# SPDX-License-Identifier: Apache-2.0
"""The runtimes that the bench knows, as data."""

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from tvmattend.bench.runtime import Runtime, Setup
from tvmattend.errors import BenchmarkError

OURS = "tvmattend"
UNTUNED = "tvmattend-untuned"
# Both formats of a bundle, whichever is the default.
FORMATS = {"tvmattend-vm": "vm", "tvmattend-standalone": "standalone"}
TVM_DEFAULT = "tvm-default"
TVM_TUNED = "tvm-default-tuned"


@dataclass(frozen=True)
class Entry:
    """A runtime.

    Attributes:
        name: As `--against` takes it.
        module: Module whose `Adapter` drives it.
        packages: Python packages that it imports, beyond what tvmattend needs anyway.
        install: The line that installs them.
        peer: Whether it counts as something a user could pick instead; TVM's own pipelines and
            other builds of ours do not.
    """

    name: str
    module: str
    packages: tuple[str, ...] = ()
    install: str = "pip install tvmattend"
    peer: bool = True

    def missing(self) -> tuple[str, ...]:
        """Packages that are not installed; they are looked for, not imported."""
        return tuple(name for name in self.packages if importlib.util.find_spec(name) is None)


# onnxscript is what torch's ONNX exporter is written with. executorch is pinned to the release
# that is built for torch 2.13: its wheel does not say so, and another one fails to load.
CATALOGUE: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(OURS, "tvmattend.bench.ours", peer=False),
        Entry("openvino", "tvmattend.bench.openvino_cpu", ("openvino",), "pip install openvino"),
        Entry(
            "onnxruntime",
            "tvmattend.bench.onnx_runtime",
            ("onnxruntime", "onnxscript"),
            "pip install onnxruntime onnxscript",
        ),
        Entry("ncnn", "tvmattend.bench.ncnn_cpu", ("ncnn", "pnnx"), "pip install ncnn pnnx"),
        Entry(
            "executorch",
            "tvmattend.bench.executorch_xnnpack",
            ("executorch",),
            'pip install "executorch>=1.5,<1.6" "torch>=2.13,<2.14"',
        ),
        Entry(
            "litert",
            "tvmattend.bench.litert_cpu",
            ("ai_edge_litert", "litert_torch"),
            # Its xDSL pins an older one than apache-tvm-ffi imports, and runs with the newer.
            'pip install litert-torch && pip install "typing-extensions>=4.14"',
        ),
        Entry("torch-compile", "tvmattend.bench.torch_compile", ("torch",)),
        Entry("torch", "tvmattend.bench.torch_eager", ("torch",)),
        Entry(TVM_DEFAULT, "tvmattend.bench.tvm_default", peer=False),
        Entry(TVM_TUNED, "tvmattend.bench.tvm_default", peer=False),
        Entry(UNTUNED, "tvmattend.bench.ours", peer=False),
        *(Entry(name, "tvmattend.bench.ours", peer=False) for name in FORMATS),
    )
}

LITERT = "litert"

# What `--against` means when it is left out. LiteRT's converter brings forty packages, JAX among
# them: it runs when it is named.
AGAINST = tuple(
    name
    for name, entry in CATALOGUE.items()
    if (entry.peer and name != LITERT) or name == TVM_DEFAULT
)

# What a hint names.
_OFFERED = (*AGAINST, LITERT)


def find(
    name: str,
    catalogue: Mapping[str, Entry] = CATALOGUE,
    offered: tuple[str, ...] = _OFFERED,
) -> Entry:
    """Look a runtime up.

    Args:
        name: Of the runtime.
        catalogue: Where.
        offered: What the hint names where nothing is near.

    Raises:
        BenchmarkError: There is none of that name; the hint names the nearest.
    """
    if name in catalogue:
        return catalogue[name]
    near = difflib.get_close_matches(name, catalogue, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(offered)}"
    raise BenchmarkError(f"the bench knows no runtime `{name}`", hint)


def parse_against(text: str, offered: tuple[str, ...] = _OFFERED) -> tuple[str, ...]:
    """Understand `openvino,ncnn,...`; spaces and repetitions are forgiven.

    Raises:
        BenchmarkError: A name is unknown, or there is none but ours.
    """
    names = [word.strip() for word in text.split(",") if word.strip()]
    chosen = dict.fromkeys(find(name, offered=offered).name for name in names)
    chosen.pop(OURS, None)
    if not chosen:
        told = f"--against names no runtime{f' beside {OURS}' if names else ''}"
        raise BenchmarkError(told, f"e.g. --against {','.join(offered)}")
    return tuple(chosen)


def make(entry: Entry, setup: Setup) -> Runtime:
    """Import an adapter and make it for a setup."""
    module = import_module(entry.module)
    return cast("Runtime", module.Adapter(setup))
