# SPDX-License-Identifier: Apache-2.0
"""Networks compiled for the tests of the C library, and programs run."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.codegen.schedule import schedule_kernels
from tvmattend.frontend import ImportedModel
from tvmattend.standalone import StandaloneFiles, emit
from tvmattend.target import TargetSpec
from tvmattend.transform import lower
from tvmattend.tuning.records import RecordSet

HERE = Path(__file__).parent
DRIVER = HERE / "driver.c"
WRAP = [f"-Wl,--wrap={name}" for name in ("malloc", "aligned_alloc", "calloc")]


@dataclass(frozen=True)
class Built:
    """A network as `emit` takes it and as it came out, with the sources it was made of."""

    imported: ImportedModel
    scheduled: Any
    target: TargetSpec
    files: StandaloneFiles
    sources: Path

    @property
    def objects(self) -> list[str]:
        """Kernels and weights."""
        return [str(self.sources / f"{stem}.o") for stem in ("kernels", "weights")]

    def inputs(self, directory: Path, seed: int = 0) -> tuple[np.ndarray, Path]:
        """Give an input, and a file with its bytes."""
        ((x,),) = self.imported.sample_inputs(1, seed)
        path = directory / "input.bin"
        path.write_bytes(x.tobytes())
        return x, path


def schedule(imported: ImportedModel, target: TargetSpec) -> Any:
    return schedule_kernels(lower(imported.ir_module, target), target, RecordSet()).mod


def build(imported: ImportedModel, target: TargetSpec, place: Path, **options: Any) -> Built:
    scheduled = schedule(imported, target)
    sources = place / "sources"
    sources.mkdir()
    files = emit(scheduled, imported, target, place, keep=sources, **options)
    return Built(imported, scheduled, target, files, sources)


def run(command: Sequence[str | Path], **options: Any) -> str:
    """Run a program that has to succeed; give what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        **options,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
