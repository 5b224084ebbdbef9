# SPDX-License-Identifier: Apache-2.0
"""TVM's own pipeline gets time enough to build its candidates beside other work."""

import pytest
from tvm.s_tir.meta_schedule.builder import Builder

from tvmattend.bench import tvm_default


def test_builders_have_time_while_the_pipeline_runs():
    before = Builder.create
    with tvm_default._patient_builds():
        patient = Builder.create("local", max_workers=1)
    assert patient.timeout_sec == tvm_default._BUILD_SECONDS
    assert Builder.create is before
    assert Builder.create("local", max_workers=1).timeout_sec < patient.timeout_sec


def test_the_usual_builder_is_back_after_an_error():
    before = Builder.create
    with pytest.raises(OSError, match="broken"), tvm_default._patient_builds():
        raise OSError("broken")
    assert Builder.create is before
