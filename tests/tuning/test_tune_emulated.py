# SPDX-License-Identifier: Apache-2.0
"""The acceptance run: tune over RPC on the emulated Cortex-A72, then use the records."""

import pytest

from tvmattend.codegen.schedule import schedule_kernels
from tvmattend.device.endpoint import parse_endpoint
from tvmattend.errors import BoardMismatchError
from tvmattend.frontend import import_model
from tvmattend.target import parse_target
from tvmattend.transform import lower
from tvmattend.tuning import TuneOptions, plan_tuning, tune
from tvmattend.tuning.events import Note, TrialDone
from tvmattend.tuning.record_file import read_records
from tvmattend.tuning.records import find_records

A72 = parse_target("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72")
TRIALS = 32


@pytest.mark.emulated
def test_tune_over_rpc_and_use_the_records(emulated_board, tmp_path):
    events = []
    options = TuneOptions(trials=TRIALS, number=1, repeat=1, min_repeat_ms=0)
    report = tune(
        "attendnext_tiny",
        A72,
        parse_endpoint(emulated_board),
        options=options,
        output=tmp_path / "logs",
        log=tmp_path / "tune.log",
        observer=events.append,
    )
    assert (report.trials, report.new_trials, report.errors) == (TRIALS, TRIALS, 0)
    assert report.origin == "emulated"
    assert report.path == tmp_path / "logs" / "emulated" / "4-threads.jsonl"
    assert "say nothing about silicon" in str(report)
    assert any("emulated" in event.text for event in events if isinstance(event, Note))
    assert sum(isinstance(event, TrialDone) for event in events) == TRIALS

    records, faults = read_records(report.path)
    assert (len(records), faults) == (TRIALS, [])
    for record in records:
        assert record.origin == "emulated"
        assert record.machine["emulated"] is True
        assert record.machine["core"] == "cortex-a72"
        assert record.is_for(A72)

    found = find_records("attendnext_tiny", A72, [tmp_path / "logs"], roots=[])
    lowered = lower(import_model("attendnext_tiny").ir_module, A72)
    scheduled = schedule_kernels(lowered, A72, found)
    assert report.tuned == min(TRIALS, len(report.tasks))
    assert scheduled.origins()["emulated"] == report.tuned

    plan = plan_tuning(
        "attendnext_tiny",
        A72,
        parse_endpoint(emulated_board),
        options=TuneOptions(trials=TRIALS + 5),
        output=tmp_path / "logs",
    )
    assert (plan.done, plan.trials) == (TRIALS, 5)
    assert read_records(report.path)[0] == records, "a dry run adds nothing"


@pytest.mark.emulated
def test_a_board_of_another_architecture_is_refused_before_the_import(emulated_board, monkeypatch):
    def start(*_):
        raise AssertionError("imported a network")

    monkeypatch.setattr("tvmattend.tuning.session._tasks", start)
    other = parse_target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64")
    with pytest.raises(BoardMismatchError):
        tune("attendnext_tiny", other, parse_endpoint(emulated_board))
