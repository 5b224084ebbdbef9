# SPDX-License-Identifier: Apache-2.0
"""TVM's own pipeline for networks of fixed shapes, as it comes, with or without tuning.

Import, `static_shape_tuning`, `tvm.compile`: what TVM's documentation tells a user to do. Weights
are not repacked, as by default: repacking changes how the result is called.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tvmattend.bench.runtime import Arrays, Setup, timed
from tvmattend.errors import BenchmarkError

# For one build, in place of TVM's 30.
_BUILD_SECONDS = 120.0


class Adapter:
    """Drives TVM without tvmattend's transformations, spaces and records."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._library = setup.directory / "model.so"

    def convert(self) -> None:
        """Tune for the trials of the setup, none by default, and compile.

        The network is the same canonical module that tvmattend starts from, BatchNorm folded.

        Raises:
            BenchmarkError: None of the trials left a record.
        """
        import tvm
        from tvm import relax

        from tvmattend.codegen.link import Linker
        from tvmattend.frontend import import_model

        target = self._setup.target.to_tvm()
        module = import_model(self._setup.request).ir_module
        pipeline = relax.get_pipeline(
            "static_shape_tuning",
            total_trials=self._setup.trials,
            target=target,
            work_dir=str(self._setup.directory),
            **self._caps(module),
        )
        with _patient_builds():
            scheduled = pipeline(module)
        if self._setup.trials and not self._recorded():
            raise BenchmarkError(
                f"none of {self._setup.trials} trials left a record",
                "repeat it on a quiet machine, with more trials",
            )
        compiled = tvm.compile(scheduled, target=target)
        compiled.export_library(str(self._library), fcompile=Linker(self._setup.target))

    def _caps(self, module: Any) -> dict[str, int]:
        """Spread the trials: left alone, TVM gives the first tasks 64 each and the rest none."""
        if not self._setup.trials:
            return {}
        from tvm import relax
        from tvm.s_tir import meta_schedule

        lowered = relax.get_pipeline("zero")(module)
        tasks = meta_schedule.relax_integration.extract_tasks(
            lowered, self._setup.target.to_tvm(), {}
        )
        return {"max_trials_per_task": max(1, self._setup.trials // len(tasks))}

    def prepare(self) -> None:
        """Load; TVM reads the size of its pool from the environment when it first runs.

        Raises:
            BenchmarkError: The pool has another size.
        """
        os.environ["TVM_NUM_THREADS"] = str(self._setup.threads)
        # The worker process is bound to its cores already; TVM would bind to the first ones.
        os.environ["TVM_BIND_THREADS"] = "0"
        import tvm
        import tvm_ffi
        from tvm import relax

        self._tensor = tvm.runtime.tensor
        self._main = relax.VirtualMachine(tvm.runtime.load_module(str(self._library)), tvm.cpu())[
            "main"
        ]
        self._version = str(tvm.__version__)
        used = int(tvm_ffi.get_global_func("runtime.NumThreads")())
        if used != self._setup.threads:
            raise BenchmarkError(f"TVM runs {used} threads")

    def version(self) -> str:
        """Give TVM's version, and the trials if there were any."""
        trials = self._setup.trials
        return f"{self._version}, {self._recorded()} trials" if trials else self._version

    def _recorded(self) -> int:
        path = self._setup.directory / "database_tuning_record.json"
        with path.open(encoding="utf-8") as lines:
            return sum(1 for line in lines if json.loads(line))

    def feed(self, inputs: Arrays) -> None:
        """Copy the inputs into TVM's tensors."""
        self._inputs = [self._tensor(np.ascontiguousarray(array)) for array in inputs]

    def run(self) -> None:
        """Infer."""
        self._result = self._main(*self._inputs)

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave."""
        result = self._result
        tensors = [result] if hasattr(result, "numpy") else list(result)
        return [tensor.numpy() for tensor in tensors]

    def time(self, count: int) -> list[float]:
        """Time inferences."""
        return timed(self.run, count)


def _build(mod: Any, target: Any, params: Any) -> Any:
    """Build a candidate as TVM's own workers do, without their import of tensor intrinsics.

    Every batch of candidates has fresh workers, which take up to a minute to parse all of these:
    no candidate is then built within TVM's 30 s. Kernels in fp32 use none.
    """
    from tvm.driver import build
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    del params
    return build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod), target=target)


@contextmanager
def _patient_builds() -> Iterator[None]:
    """Change the builder that the pipeline creates and offers no option for."""
    from tvm.s_tir.meta_schedule.builder import Builder, LocalBuilder

    create = Builder.create

    def patient(kind: str, **options: Any) -> Any:
        del kind
        return LocalBuilder(timeout_sec=_BUILD_SECONDS, f_build=_build, **options)

    Builder.create = staticmethod(patient)
    try:
        yield
    finally:
        Builder.create = staticmethod(create)
