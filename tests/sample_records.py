# SPDX-License-Identifier: Apache-2.0
"""Records for the tests of this directory."""

from dataclasses import replace

from tvmattend.tuning.record import Record

TARGET = {
    "kind": "llvm",
    "mtriple": "aarch64-linux-gnu",
    "mcpu": "cortex-a72",
    "num-cores": 4,
}
RECORD = Record(
    task="fused_conv2d",
    key="00ff00ff00ff00ff",
    kernel="conv2d_pixels",
    point={"tile": 402, "unroll": 1},
    status="ok",
    origin="measured",
    machine={"core": "cortex-a72", "clock_mhz": 1500, "emulated": False},
    target=TARGET,
    trace=[[["SampleCategorical", [], [[1, 2], [0.5, 0.5]], ["v0"]]], [[0, 1]]],
    run_secs=(0.0012, 0.0011, 0.0013),
    tvm="0.27.0.post1",
    seed=3,
    wall_secs=0.7,
)
FAILED = replace(RECORD, status="timeout", run_secs=(), error="measuring took more than 1 s")
