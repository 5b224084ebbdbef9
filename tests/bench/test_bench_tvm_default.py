# SPDX-License-Identifier: Apache-2.0
"""TVM's own pipeline gets time enough to build its candidates beside other work."""

import pytest
import tvm
from tvm import te
from tvm.s_tir.meta_schedule.builder import Builder, BuilderInput

from tvmattend.bench import tvm_default


def test_builders_have_time_while_the_pipeline_runs():
    before = Builder.create
    with tvm_default._patient_builds():
        patient = Builder.create("local", max_workers=1)
    assert patient.timeout_sec == tvm_default._BUILD_SECONDS
    assert Builder.create is before
    assert Builder.create("local", max_workers=1).timeout_sec < patient.timeout_sec


def test_its_workers_build_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where they leave it
    x = te.placeholder((64,), name="x")
    doubled = te.create_prim_func([x, te.compute((64,), lambda i: x[i] * 2.0)])
    with tvm_default._patient_builds():
        builder = Builder.create("local", max_workers=1)
        (built,) = builder.build([
            BuilderInput(tvm.IRModule({"main": doubled}), tvm.target.Target("llvm"))
        ])
    assert built.error_msg is None


def test_the_usual_builder_is_back_after_an_error():
    before = Builder.create
    with pytest.raises(OSError, match="broken"), tvm_default._patient_builds():
        raise OSError("broken")
    assert Builder.create is before
