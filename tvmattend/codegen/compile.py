# SPDX-License-Identifier: Apache-2.0
"""Scheduled IRModule -> Relax VM executable -> one shared library with the weights inside."""

import tempfile
from pathlib import Path
from typing import Any

from tvmattend.codegen.intrinsics import use_vector_math
from tvmattend.codegen.link import Linker
from tvmattend.errors import compiling
from tvmattend.target import TargetSpec


def compile_module(scheduled: Any, target: TargetSpec) -> Any:
    """Lower the calls and the memory, then generate code.

    Args:
        scheduled: IRModule whose PrimFuncs are scheduled.
        target: The machine.

    Returns:
        A `tvm.relax.VMExecutable`; `export` writes it.

    Raises:
        CompileError: TVM or LLVM refused the module.
    """
    import tvm
    from tvm import relax

    use_vector_math()
    passes = relax.transform
    # What is left of TVM's CPU pipeline once every operator is a scheduled PrimFunc.
    lowering = tvm.transform.Sequential([
        passes.RewriteDataflowReshape(),
        passes.ToNonDataflow(),
        passes.RemovePurityChecking(),
        passes.CallTIRRewrite(),
        # One arena, planned here: no allocation happens in an inference.
        passes.StaticPlanBlockMemory(),
        passes.LowerAllocTensor(),
        passes.KillAfterLastUse(),
        passes.LowerRuntimeBuiltin(),
        passes.ComputePrimValue(),
        passes.VMShapeLower(),
        passes.AttachGlobalSymbol(),
    ])
    machine = target.to_tvm()
    hint = (
        "run again with --debug for the whole message; if a tuning record is at fault, "
        "--no-records builds without any"
    )
    with compiling(f"the network for {target.describe()}", hint), machine:
        return relax.build(scheduled, machine, relax_pipeline=lowering)


def export(
    executable: Any, library: Path, target: TargetSpec, cross_compiler: str | None = None
) -> None:
    """Write the shared library.

    Args:
        executable: From `compile_module`.
        library: Path of the `.so`.
        target: Chooses the linker's target.
        cross_compiler: A command to link with instead of Zig.

    Raises:
        CompileError: The linker failed.
        ToolMissingError: There is no linker.
    """
    # Objects beside the library: $TMPDIR may be small, and LLVM aborts the process when it is full.
    with tempfile.TemporaryDirectory(prefix=".objects-", dir=library.absolute().parent) as objects:
        executable.export_library(
            str(library), fcompile=Linker(target, cross_compiler), workspace_dir=objects
        )
