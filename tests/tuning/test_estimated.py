# SPDX-License-Identifier: Apache-2.0
"""Tuning on the Cortex-A72 model: what is refused, what is checked, what is recorded."""

import tempfile
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from sample_tasks import (
    add_one,
    crashing,
    hanging,
    matmul,
    scheduled,
    unbuildable,
)

from tvmattend.codegen.schedule import schedule_kernels
from tvmattend.device.endpoint import Endpoint
from tvmattend.errors import StorageError, TargetError, ToolMissingError, TuningError
from tvmattend.frontend import import_model
from tvmattend.machine.kernels import KernelModel
from tvmattend.machine.parameters import MODEL_ERROR
from tvmattend.target import parse_target
from tvmattend.transform import lower
from tvmattend.tuning import TuneOptions, plan_tuning, tune
from tvmattend.tuning.bench import Outcome
from tvmattend.tuning.estimated import Estimators, difference
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.records import find_records

A72 = parse_target("cortex-a72", 1)
MODEL = KernelModel()


class Info(NamedTuple):
    shape: tuple[int, ...]
    dtype: str = "float32"


@pytest.fixture
def no_import(monkeypatch):
    def start(*_):
        raise AssertionError("imported a network")

    monkeypatch.setattr("tvmattend.tuning.session._tasks", start)


@pytest.mark.parametrize("target", ["cortex-a76", "llvm -mtriple=x86_64-linux-gnu"])
def test_another_core_is_refused(no_import, target):
    spec = (
        parse_target(f"llvm -mtriple=aarch64-linux-gnu -mcpu={target}", 1)
        if (target.startswith("cortex"))
        else parse_target(target, 1)
    )
    with pytest.raises(TargetError, match=rf"core is {spec.cpu}; .* those of a cortex-a72"):
        tune("attendnext_tiny", spec, model=MODEL)


def test_another_number_of_threads_is_refused(no_import):
    with pytest.raises(TuningError, match="for 1 or 4 threads, not for 2"):
        plan_tuning("attendnext_tiny", parse_target("cortex-a72", 2), model=MODEL)


def test_a_board_is_refused(no_import):
    with pytest.raises(TuningError, match="needs no board"):
        tune("attendnext_tiny", A72, Endpoint("127.0.0.1", 9090), model=MODEL)


@pytest.mark.parametrize("missing", ["qemu-aarch64", "llvm-mca"])
def test_a_missing_tool_is_known_before_the_import(no_import, monkeypatch, missing):
    from tvmattend.machine import instructions

    instructions.llvm_tool.cache_clear()
    real = __import__("shutil").which
    monkeypatch.setattr(
        "shutil.which", lambda name, *_, **__: None if name.startswith(missing) else real(name)
    )
    with pytest.raises(ToolMissingError, match=missing):
        tune("attendnext_tiny", A72, model=MODEL)
    instructions.llvm_tool.cache_clear()


def test_records_say_the_error_of_their_threads():
    described = {threads: MODEL.describe(threads) for threads in MODEL_ERROR}
    assert {threads: each["model_error"] for threads, each in described.items()} == MODEL_ERROR
    assert len({each["digest"] for each in described.values()}) == 1, "comparable all the same"


def write(path: Path, *arrays: np.ndarray) -> Path:
    path.write_bytes(b"".join(array.tobytes() for array in arrays))
    return path


def test_tensors_are_compared_by_their_largest_value(tmp_path):
    infos = [Info((2, 2)), Info((3,), "int32")]
    floats = np.array([[100.0, 1e-6], [np.nan, np.inf]], "float32")
    whole = np.array([1, 2, 3], "int32")
    right = write(tmp_path / "right", floats, whole)
    assert difference(right, right, infos) == ""

    def compare(*arrays):
        return difference(right, write(tmp_path / "other", *arrays), infos)

    near = floats.copy()
    near[0, 1] = 5e-4  # far from 1e-6, but 5e-6 of the largest
    assert compare(near, whole) == ""
    far = floats.copy()
    far[0, 0] = 100.01
    assert "argument 0 differs from the default point's by 1.0e-04" in compare(far, whole)
    for place, value in (((0, 0), np.nan), ((1, 0), 1.0), ((1, 1), -np.inf)):
        other = floats.copy()
        other[place] = value
        assert "argument 0 differs" in compare(other, whole)
    assert "argument 1 differs" in compare(floats, whole + 1)
    for file, size in ((write(tmp_path / "short", floats), 16), (tmp_path / "missing", 0)):
        for pair in ((right, file), (file, right)):
            with pytest.raises(
                StorageError, match=rf"wrote {size} of 28 bytes .* `{tmp_path.parent}`"
            ):
                difference(*pair, infos)


@pytest.fixture(scope="module")
def machine(emulated):
    del emulated
    with Estimators(MODEL, A72, 20.0, MODEL.describe(1)) as made:
        yield made


def outcomes(machine, *candidates):
    """As `TuningRun` goes through a batch."""
    machine.submit(candidates)
    finished = [machine.next() for _ in candidates]
    assert [each.candidate for each in finished] == list(candidates)
    assert all(each.wall_secs >= 0 and not each.fatal for each in finished)
    return [each.outcome for each in finished]


@pytest.mark.emulated
def test_the_same_machine_code_runs_once(machine, monkeypatch):
    ran = []
    run = machine._run

    def counted(artifact, tensors):
        ran.append(artifact.path)
        return run(artifact, tensors)

    monkeypatch.setattr(machine, "_run", counted)
    task = add_one()  # whose knob changes nothing
    default = outcomes(machine, scheduled(task))
    assert default[0].status == "ok"
    assert outcomes(machine, scheduled(task, {"flag": 1})) == default
    assert len(ran) == 1
    other = matmul(16)
    found = outcomes(machine, scheduled(other), scheduled(other, {"rows": 1, "cols": 4}))
    assert len(ran) == 3
    assert found[1].run_secs != found[0].run_secs
    for flag in (0, 1):
        assert outcomes(machine, scheduled(crashing(), {"flag": flag}))[0].status == "run-error"
    assert len(ran) == 5, "what failed may have been the machine's fault"


@pytest.mark.emulated
def test_estimates_tell_schedules_apart_and_failures_stay_single(machine):
    task = matmul(32)
    slow, fast = {"rows": 1, "cols": 4}, {"rows": 4, "cols": 16}
    found = outcomes(
        machine,
        scheduled(task),
        scheduled(unbuildable()),
        scheduled(crashing()),
        scheduled(task, slow),
        scheduled(task, fast),
    )
    assert [each.status for each in found] == ["ok", "build-error", "run-error", "ok", "ok"]
    assert "CrashError: the kernel failed under QEMU (exit code 139)" in found[2].error
    assert found[3].run_secs > found[4].run_secs
    # 32 768 multiply-accumulates, at most four a cycle of 1.8 GHz
    assert found[4].run_secs[0] > 32**3 / 4 / 1.8e9


@pytest.mark.emulated
def test_a_point_that_computes_something_else_is_a_run_error(machine):
    """The wrong point is built from another task's schedule; the reference is made on the way."""
    task = matmul(16)
    point = {"rows": 1, "cols": 4}
    wrong = replace(scheduled(task, point), schedule=_wrong_matmul())
    right = scheduled(task, {"rows": 1, "cols": 8})
    found = outcomes(machine, wrong, right)
    assert [each.status for each in found] == ["run-error", "ok"]
    assert "WrongResultError: argument 2 differs from the default point's" in found[0].error


def _wrong_matmul():
    import tvm
    from tvm import te

    left, right = te.placeholder((16, 16), name="a"), te.placeholder((16, 16), name="b")
    total = te.compute((16, 16), lambda i, j: left[i, j] + right[j, i], name="c")
    func = te.create_prim_func([left, right, total]).with_attr("global_symbol", "main")
    return tvm.s_tir.Schedule(tvm.IRModule({"main": func}))


@pytest.mark.emulated
def test_without_a_default_there_is_nothing_to_compare_with(machine):
    task = crashing()
    assert outcomes(machine, scheduled(task))[0].status == "run-error"
    fine = replace(scheduled(task, {"flag": 1}), schedule=scheduled(add_one()).schedule)
    (found,) = outcomes(machine, fine)
    assert found.status == "run-error"
    assert "nothing to compare with: the default: CrashError" in found.error


@pytest.mark.emulated
def test_a_default_that_was_late_is_run_once_more(machine):
    """On a busy machine, a whole task would be lost otherwise."""
    task = matmul(24)
    late = Future()
    late.set_result(Outcome("timeout", error="building took more than 20 s"))
    machine._defaults[task.key] = late
    (found,) = outcomes(machine, scheduled(task, {"rows": 1, "cols": 8}))
    assert found.status == "ok", found.error


@pytest.mark.emulated
def test_a_kernel_that_hangs_is_a_timeout_and_leaves_nothing(emulated, tmp_path, monkeypatch):
    # A place of its own: in /tmp other runs come and go.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def leftovers():
        return {path.name for path in tmp_path.iterdir()}

    def guests():
        return {
            child.pid
            for child in psutil.Process().children(recursive=True)
            if child.name().startswith("qemu-aarch64") and "kernel_guest" in child.cmdline()
        }

    before, running = leftovers(), guests()
    with Estimators(MODEL, A72, 8.0, MODEL.describe(1)) as machine:
        late, fine = outcomes(machine, scheduled(hanging()), scheduled(add_one()))
        assert (late.status, late.error) == ("timeout", "running took more than 8 s")
        assert fine.status == "ok"
    assert leftovers() == before
    assert guests() == running


@pytest.mark.emulated
def test_a_machine_that_cannot_write_gives_no_verdict_but_those_it_has(emulated, monkeypatch):
    del emulated
    with Estimators(MODEL, A72, 20.0, MODEL.describe(1)) as machine:
        assert outcomes(machine, scheduled(add_one()))[0].status == "ok"
        good, bad = scheduled(matmul(32)), scheduled(unbuildable())
        machine.submit([bad, good])
        while not all(trial.done() for _, trial in machine._under_way):
            time.sleep(0.05)
        with monkeypatch.context() as full:
            full.setattr(
                "tvmattend.tuning.own_faults.no_room",
                lambda place, _: StorageError(f"no space left in `{place}`", "free some"),
            )
            machine.submit([scheduled(unbuildable(), {"flag": 1})])
            assert [machine.next().candidate for _ in range(2)] == [bad, good]
            with pytest.raises(StorageError, match="no space left"):
                machine.next()
        machine.submit([good])
        with pytest.raises(StorageError):
            machine.next()


@pytest.mark.emulated
def test_tune_and_use_the_records(emulated, tmp_path):
    del emulated
    trials = 6

    def go(method, trials, **options):
        return method(
            "attendnext_tiny", A72, options=TuneOptions(trials=trials),
            output=tmp_path / "logs", model=MODEL, **options,
        )  # fmt: skip

    report = go(tune, trials, log=tmp_path / "tune.log")
    assert (report.trials, report.new_trials, report.errors) == (trials, trials, 0)
    assert report.path == tmp_path / "logs" / "estimated" / "1-threads.jsonl"
    assert "estimated by tvmattend.machine" in str(report)
    assert "mean error" in str(report)
    records, faults = read_records(report.path)
    assert (len(records), faults) == (trials, [])
    for record in records:
        assert (record.origin, record.threads) == ("estimated", 1)
        assert record.machine == MODEL.describe(1)
        assert record.is_for(A72)

    # `build` takes them, for four threads too, and says what they are.
    for threads in (1, 4):
        target = parse_target("cortex-a72", threads)
        found = find_records("attendnext_tiny", target, [tmp_path / "logs"], roots=[])
        lowered = lower(import_model("attendnext_tiny").ir_module, target)
        origins = schedule_kernels(lowered, target, found).origins()
        if threads == 1:
            assert origins["estimated"] == report.tuned
        assert origins.get("measured", 0) == 0

    # Estimates of another model are not gone on with.
    assert go(plan_tuning, trials + 2).trials == 2
    report.path.unlink()
    for other in ("digest", "llvm"):
        old = replace(records[0], machine={**records[0].machine, other: "another"})
        RecordFile(report.path).append(old)
    assert go(plan_tuning, trials).done == 0
