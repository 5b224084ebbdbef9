# SPDX-License-Identifier: Apache-2.0
"""The one ordered list of passes between the canonical module and the kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from schedules.machines import machine_of
from tvmattend.target import TargetSpec
from tvmattend.transform.layout import assign_layouts
from tvmattend.transform.legalize import legalizations

Phase = tuple[str, Callable[[Any], Any]]


def phases(target: TargetSpec) -> list[Phase]:
    """Name and function of every phase, in order."""
    import tvm
    from tvm import relax

    machine = machine_of(target.to_tvm())
    passes = relax.transform

    def run(*steps: Any) -> Callable[[Any], Any]:
        sequence: Callable[[Any], Any] = tvm.transform.Sequential(steps)
        return sequence

    return [
        # First, while convolutions are still operators with a layout attribute.
        ("layout", lambda mod: assign_layouts(mod, machine)),
        # The layout pass leaves transposed constants (biases); fold them while they are operators.
        ("fold", run(passes.FoldConstant())),
        # Packs the weights, so it needs them constant and in OIHW.
        ("legalize", run(passes.LegalizeOps(legalizations(machine)))),
        # Fusion reads the patterns that AnnotateTIROpPattern finds in the PrimFuncs.
        (
            "fuse",
            run(
                passes.AnnotateTIROpPattern(),
                passes.FoldConstant(),
                passes.FuseOps(),
                passes.FuseTIR(),
                passes.DeadCodeElimination(),
            ),
        ),
    ]


def lower(mod: Any, target: TargetSpec, dump: Path | None = None) -> Any:
    """Canonical IRModule -> IRModule whose `main` calls one PrimFunc a kernel.

    Tune and build both come through here, so that their kernels have the same structural hash.

    Args:
        mod: Canonical IRModule of `tvmattend.frontend`, weights as constants.
        target: Decides layouts, packing and register blocks.
        dump: Directory that receives the IR after each phase, numbered.
    """
    with target.to_tvm():
        for number, (name, phase) in enumerate(phases(target)):
            mod = phase(mod)
            if dump is not None:
                dump.mkdir(parents=True, exist_ok=True)
                text = mod.script(show_meta=False)
                (dump / f"{number:02d}-{name}.py").write_text(text, encoding="utf-8")
    return mod
