# SPDX-License-Identifier: Apache-2.0
"""What runs inside worker processes: build a kernel, link it, allocate its arguments, time it.

The functions go there by name, so they stand at the top of an importable module and take plain
values; nothing else of the tuner is loaded in a worker.
"""

import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tvmattend.codegen.intrinsics import use_vector_math
from tvmattend.codegen.link import Linker

# Of `threading_backend.h`: as many threads as asked for, on the fastest cores first.
_BIG_CORES_FIRST = 1


def make_kernel(mod: Any, target: Any, directory: str, linker: Linker) -> str:
    """Compile a scheduled IRModule and link it into a library of a name that was never used.

    MetaSchedule's own `default_build` imports all tensor intrinsics first, which takes 13 s in
    each fresh worker; our schedules use none. The name matters to an RPC server: its child crashes
    when a library that it has open is uploaded again, and MetaSchedule uploads under this name.

    Returns:
        The library's path.
    """
    import tvm

    use_vector_math()
    # A trial's arguments are of the right shapes by construction. The checks are up to a quarter of
    # what LLVM compiles (benchmarks/NOTES.md, "Where a candidate's time goes").
    trusting = tvm.transform.PassContext(config={"tirx.disable_assert": True})
    with trusting, target:  # the lowering of intrinsics asks which core it is for
        module = tvm.tirx.build(mod, target=target)
    path = os.path.join(directory, f"kernel-{uuid.uuid4().hex}.so")  # noqa: PTH118
    module.export_library(path, fcompile=linker)
    return path


def build_kernel(mod: Any, target: Any, directory: str, linker: Linker) -> str:
    """As `make_kernel`, in a process of its own: what it leaves if it dies goes with the run."""
    tempfile.tempdir = directory
    return make_kernel(mod, target, directory, linker)


def allocate_remote(
    session: Any, device: Any, args_info: Sequence[Any], repeat: int, threads: int
) -> Any:
    """Allocate random arguments on the board, and give its thread pool the right size."""
    from tvm.s_tir.meta_schedule.runner.rpc_runner import default_alloc_argument

    session.get_function("runtime.config_threadpool")(_BIG_CORES_FIRST, threads)
    return default_alloc_argument(session, device, args_info, repeat)


def time_local(
    library: str, args_info: Sequence[Any], evaluation: Mapping[str, int], threads: int
) -> list[float]:
    """Time a kernel on this machine, on random arguments.

    Args:
        library: Its path.
        args_info: JSON of its `ArgInfo`s.
        evaluation: Of MetaSchedule's `EvaluatorConfig`.
        threads: Threads that it runs with.

    Returns:
        Seconds of each repetition.
    """
    # Read when the pool starts, which is with the first parallel call; on x86 TVM would otherwise
    # start half as many threads as there are logical cores, and `config_threadpool` cannot add any.
    os.environ["TVM_NUM_THREADS"] = str(threads)
    import tvm
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, local_runner

    module, device = tvm.runtime.load_module(library), tvm.cpu()
    tvm.get_global_func("runtime.config_threadpool")(_BIG_CORES_FIRST, threads)
    arguments = local_runner.default_alloc_argument(device, args_info, 1)
    config = EvaluatorConfig(**evaluation)
    return [float(s) for s in local_runner.default_run_evaluator(module, device, config, arguments)]


def wake() -> None:
    """Import what an attempt needs, before it matters how long that takes."""
    import tvm.s_tir.meta_schedule.runner  # noqa: F401
