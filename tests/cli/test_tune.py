# SPDX-License-Identifier: Apache-2.0
"""`tvmattend tune`: what it refuses and when, what it prints, and what it leaves behind."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sample_records import FAILED, RECORD
from sample_tasks import FakeMeasurer, add_one, matmul

from tvmattend.cli.main import cli
from tvmattend.cli.tune import command
from tvmattend.cli.tune_progress import LiveProgress, Progress
from tvmattend.errors import (
    BoardUnreachableError,
    ModelError,
    NoFreeBoardError,
    RecordsError,
    StorageError,
    TargetError,
    ToolMissingError,
    TuningError,
)
from tvmattend.machine.kernels import KernelModel
from tvmattend.target import parse_target
from tvmattend.tuning.bench import Outcome
from tvmattend.tuning.crew import Alone
from tvmattend.tuning.events import Building, Note, Planned, TrialDone
from tvmattend.tuning.patience import Patience
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.report import TaskPlan, TunePlan

HOST = parse_target("host")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory, a cache and an environment of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "cache"))
    for name in ("TVM_TRACKER_HOST", "TVM_TRACKER_PORT", "TVM_TRACKER_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(*words, fails=None):
    """Call the command as `main` does; its errors are exceptions here."""
    result = CliRunner().invoke(command, [str(word) for word in words])
    if fails is not None:
        assert isinstance(result.exception, fails), (result.output, result.exception)
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.fixture
def fake(monkeypatch):
    """Sample tasks instead of a network, and a measurer without processes."""
    measurer = FakeMeasurer()
    tasks = [matmul(weight=2), add_one()]
    monkeypatch.setattr("tvmattend.tuning.session._tasks", lambda *_: (tasks, None))
    monkeypatch.setattr(
        "tvmattend.tuning.measure.KernelMeasurer",
        lambda *_: contextlib.nullcontext(measurer),
    )
    return measurer


OWN = f"tuning_logs/attendnext_tiny/{HOST.name}/measured/{HOST.num_cores}-threads.jsonl"
TINY = ("--model", "attendnext_tiny", "--target", "host")


def test_a_board_that_is_not_there_is_known_before_torch_is_imported(tmp_path, closed_port):
    code = (
        "import sys\n"
        "from tvmattend.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as leave:\n"
        "    print(leave.code, 'torch' in sys.modules, 'tvm' in sys.modules)\n"
    )
    words = ["tune", "--target", "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--rpc", closed_port],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "7 False False\n"
    assert f"error: {closed_port}: " in done.stderr
    assert "hint: on the board run `tvmattend device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_that_is_not_this_machine_needs_a_board():
    other = "cortex-a72" if HOST.arch == "x86_64" else "llvm -mtriple=x86_64-linux-gnu"
    result = run("--target", other, fails=TargetError)
    assert "must be measured on a board" in str(result.exception)
    assert "--rpc HOST:PORT" in result.exception.hint
    assert "tvmattend device --emulate" in result.exception.hint


def test_estimating_needs_no_board_and_says_so(monkeypatch, tmp_path):
    """The default is one thread; a tracker in the environment is not asked for a board."""
    monkeypatch.setenv("TVM_TRACKER_HOST", "127.0.0.1")
    monkeypatch.setattr("tvmattend.tuning.session._tasks", lambda *_: ([matmul(), add_one()], None))
    measurer = FakeMeasurer(origin="estimated", machine=KernelModel().describe(1))
    monkeypatch.setattr(
        "tvmattend.tuning.estimated.Estimators",
        lambda *_: contextlib.nullcontext(Alone(measurer, Patience(lambda _: None))),
    )
    words = ("--model", "attendnext_tiny", "--estimate", "--trials", "4")
    result = run(*words, "--json")
    assert "note: kernels are estimated, and tuned, for one thread (--threads 1)" in result.stderr
    assert "times will be estimated" in result.stderr
    report = json.loads(result.stdout)
    path = "tuning_logs/attendnext_tiny/cortex-a72/estimated/1-threads.jsonl"
    assert (report["origin"], report["records"]) == ("estimated", str(tmp_path / path))
    assert 0 < report["machine"]["model_error"] < 0.1
    assert report["target"]["num-cores"] == 1
    assert [path.name for path in (tmp_path / "tuning_logs").rglob("*.jsonl")] == [
        "1-threads.jsonl"
    ]
    assert "note: kernels are estimated" not in run(*words, "--threads", 1).stderr


def test_a_log_wants_its_directory(tmp_path):
    place = tmp_path / "none" / "tune.log"
    result = run("--model", "attendnext_tiny", "--dry-run", "--log", place, fails=StorageError)
    assert "for --log" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("--target", "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"), TargetError, "a76"),
        (("--threads", "2"), TuningError, "1 or 4 threads, not for 2"),
        (("--rpc", "127.0.0.1:9"), SystemExit, "--estimate needs no board"),
        (("--rpc-tracker", "127.0.0.1:9"), SystemExit, "--estimate needs no board"),
        (("--rpc-key", "pi4"), SystemExit, "--estimate needs no board"),
    ],
)
def test_what_an_estimate_refuses(words, error, says, tmp_path):
    result = run("--model", "attendnext_tiny", "--estimate", *words, fails=error)
    assert says in f"{result.exception} {result.output}"
    assert not (tmp_path / "tuning_logs").exists()


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("--model", "resnet5000"), ModelError, "resnet5000"),
        (("--target", "pentium"), TargetError, "pentium"),
        ((*TINY, "--tuning-records", "nowhere"), RecordsError, "no tuning records at `nowhere`"),
        ((*TINY, "--cross-compiler", "no-such-cc"), ToolMissingError, "no-such-cc"),
        ((*TINY, "--rpc", "a:b:c"), BoardUnreachableError, "a:b:c"),
        ((*TINY, "--prune", "2"), RecordsError, "holds no tuning records"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(monkeypatch, words, error, says):
    def start(*_):
        raise AssertionError("imported a network")

    monkeypatch.setattr("tvmattend.tuning.session._tasks", start)
    result = run(*words, fails=error)
    assert says in str(result.exception)
    assert result.exception.hint


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--dry-run",), "--dry-run does"),
        (("--rpc", "pi4:9090", "--trials", "256"), "--rpc, --trials do"),
        (("--estimate", "--key", "pi", "--threads", "4"), "--threads, --estimate, --rpc-key do"),
        (("--seed", "0", "--weights", "w.pt"), "--weights, --seed do"),
    ],
)
def test_what_prune_does_not_use_is_refused_by_name(tmp_path, words, named):
    (tmp_path / "w.pt").touch()
    RecordFile(tmp_path / OWN).append(RECORD)
    result = CliRunner().invoke(command, (*TINY, "--prune", "1", *words))
    assert result.exit_code == 2
    assert f": {named} not go with it" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "words",
    [
        ("--rpc", "pi4", "--rpc-tracker", "pi4:9190"),
        ("--rpc", "pi4", "--rpc-key", "pi"),
        ("--target", "host", "--rpc-key", "pi"),
        ("--rpc-tracker", "pi4:9190"),
    ],
)
def test_options_that_contradict_each_other(words):
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2
    assert "--rpc" in result.stderr


def test_the_environment_names_the_tracker(monkeypatch, closed_port):
    host, port = closed_port.split(":")
    monkeypatch.setenv("TVM_TRACKER_HOST", host)
    monkeypatch.setenv("TVM_TRACKER_PORT", port)
    other = "cortex-a72" if HOST.arch == "x86_64" else "llvm -mtriple=x86_64-linux-gnu"
    assert run("--target", other).exit_code == 2, "no key"
    monkeypatch.setenv("TVM_TRACKER_KEY", "pi4")
    result = run("--target", other, fails=(BoardUnreachableError, NoFreeBoardError))
    assert closed_port in str(result.exception)
    result = run("--target", other, "--rpc", "127.0.0.1:1", fails=BoardUnreachableError)
    assert "127.0.0.1:1" in str(result.exception), "a given board beats the environment"


def test_the_environment_does_not_take_this_machines_own_tuning_away(monkeypatch, fake):
    monkeypatch.setenv("TVM_TRACKER_HOST", "127.0.0.1")
    assert run(*TINY, "--trials", 1).exit_code == 0


def test_a_dry_run_shows_the_plan_and_runs_nothing(fake, tmp_path):
    write = RecordFile(tmp_path / OWN).append
    record = RECORD
    task = matmul(weight=2)
    fields = {"key": task.key, "target": HOST.to_json(), "kernel": "matmul"}
    write(replace_of(record, point=task.space.default, **fields))
    write(replace_of(record, point={"rows": 1, "cols": 4}, **fields))
    before = (tmp_path / OWN).read_bytes()
    result = run(*TINY, "--dry-run", "--json", "--trials", 12)
    plan = json.loads(result.stdout)
    assert [task["name"] for task in plan["tasks"]] == ["matmul", "add_one"]
    assert plan["tasks"][0] == {
        "name": "matmul",
        "key": task.key,
        "kernel": "matmul",
        "weight": 2,
        "flops": 2.0 * 64**3,
        "points": 16,
        "trials": 2,
        "records": {"measured": 2},
    }
    assert (plan["trials"], plan["trials_recorded"]) == (10, 2)
    assert plan["estimated_seconds"] == pytest.approx(10 * record.wall_secs)
    text = run(*TINY, "--dry-run", "--trials", 12).stdout
    assert "10 trials to run, 2 recorded, about 7 s" in text
    assert "2 measured" in text
    assert fake.ran == []
    assert (tmp_path / OWN).read_bytes() == before


def test_a_dry_run_for_another_machine_needs_no_board(fake):
    other = "cortex-a72" if HOST.arch == "x86_64" else "llvm -mtriple=x86_64-linux-gnu"
    result = run("--model", "attendnext_tiny", "--target", other, "--dry-run")
    assert "no board was given" in result.stdout


def test_a_run_prints_plain_lines_and_a_table(fake, tmp_path):
    result = run(*TINY, "--trials", 6)
    lines = result.stderr.splitlines()
    trials = [line for line in lines if line.startswith("[") and "/6]" in line]
    assert len(trials) == 6
    assert trials[0].startswith("[1/6] task 1/2 matmul: ")
    assert "best" in trials[-1]
    assert "GFLOP/s" in trials[-1]
    assert trials[-1].endswith("0 s left")
    assert f"records go to `{tmp_path / OWN}`, TVM's messages to `{tmp_path / 'cache'}" in (
        result.stderr
    )
    assert "all kernels of one inference: default" in result.stdout
    assert "2 of 2 kernels have a record; 6 trials (6 new, 0 failed)" in result.stdout
    assert len(read_records(tmp_path / OWN)[0]) == 6


def test_json_is_one_object_and_the_run_goes_on(fake):
    first = json.loads(run(*TINY, "--trials", 5, "--json", "-o", "here").stdout)
    assert (first["trials"], first["new_trials"], first["origin"]) == (5, 5, "measured")
    assert first["records"] == f"here/measured/{HOST.num_cores}-threads.jsonl"
    second = json.loads(run(*TINY, "--trials", 9, "--json", "-o", "here").stdout)
    assert (second["trials"], second["new_trials"]) == (9, 4)
    done = run(*TINY, "--trials", 9, "-o", "here")
    assert "all 9 trials are recorded; raise --trials to go on" in done.stderr


def test_with_nothing_to_do_nothing_is_started(fake, monkeypatch):
    run(*TINY, "--trials", 9)

    def start(*_):
        raise AssertionError("started a builder")

    monkeypatch.setattr("tvmattend.tuning.measure.KernelMeasurer", start)
    result = run(*TINY, "--trials", 9, "--json")
    assert "starting" not in result.stderr
    report = json.loads(result.stdout)
    assert (report["trials"], report["new_trials"]) == (9, 0)
    assert report["best_seconds"] > 0
    run(*TINY, "--trials", 10, fails=AssertionError)


def test_a_point_whose_board_was_lost_is_something_to_do(fake, tmp_path):
    """It earns one more trial, also where every point has a record."""
    run(*TINY, "--trials", 18)
    path = tmp_path / OWN
    records = read_records(path)[0]
    path.unlink()
    for place, record in enumerate(records):
        lost = {"status": "run-error", "run_secs": (), "error": "board lost: refused"}
        RecordFile(path).append(record if place else replace_of(record, **lost))
    report = json.loads(run(*TINY, "--trials", 99, "--json").stdout)
    assert (report["trials"], report["new_trials"], report["errors"]) == (19, 1, 1)
    assert json.loads(run(*TINY, "--trials", 99, "--json").stdout)["new_trials"] == 0


def test_a_torn_last_line_is_repaired_and_said(fake, tmp_path):
    run(*TINY, "--trials", 3)
    torn = '{"schema":1,"task":"to'
    with (tmp_path / OWN).open("a", encoding="utf-8") as handle:
        handle.write(torn)
    dry = run(*TINY, "--trials", 5, "--dry-run")
    assert f"1 unreadable lines skipped (first: {tmp_path / OWN}:4: not JSON" in dry.stdout
    assert (tmp_path / OWN).read_text(encoding="utf-8").endswith(torn), "a dry run only reads"
    result = run(*TINY, "--trials", 5)
    assert f"note: the last line of `{tmp_path / OWN}` was torn" in result.stderr
    assert "22 bytes are removed" in result.stderr
    assert "unreadable" not in result.stderr
    records, faults = read_records(tmp_path / OWN)
    assert (len(records), faults) == (5, [])
    assert "was torn" not in run(*TINY, "--trials", 6).stderr


def test_pruning_and_a_run_at_once_are_one_too_many(fake, tmp_path, monkeypatch):
    """Also from another cache: the claim lies where the records are."""
    run(*TINY, "--trials", 3)
    with RecordFile(tmp_path / OWN).claimed():
        monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "another"))
        result = run(*TINY, "--prune", 1, fails=RecordsError)
        assert result.exception.exit_code == 11
        run(*TINY, "--trials", 4, fails=RecordsError)
    assert len(read_records(tmp_path / OWN)[0]) == 3
    assert run(*TINY, "--prune", 1).exit_code == 0


def test_two_runs_at_once_are_one_too_many(fake, tmp_path):
    with RecordFile(tmp_path / OWN).claimed():
        result = run(*TINY, "--trials", 3, fails=RecordsError)
        assert f"another tuning run (process {os.getpid()}) has" in str(result.exception)
        assert run(*TINY, "--trials", 3, "--dry-run").exit_code == 0
    assert run(*TINY, "--trials", 3).exit_code == 0


def test_ctrl_c_says_what_is_recorded_and_how_to_go_on(fake):
    calls = []

    def answer(task, point):
        calls.append(point)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Outcome("ok", (1e-3,))

    fake.answer = answer
    result = run(*TINY, "--trials", 9)
    assert result.exit_code == 130
    assert "interrupted: 2 trials of this run (2 in all) are in" in result.stderr
    assert "repeat the command to go on" in result.stderr
    assert "2 of 2 kernels have a record" in result.stdout


def test_ctrl_c_before_the_first_trial_names_no_file_that_is_not_there(fake, tmp_path):
    def answer(task, point):
        raise KeyboardInterrupt

    fake.answer = answer
    result = run(*TINY, "--trials", 9)
    assert result.exit_code == 130
    assert "interrupted: no trial is recorded; repeat the command to go on" in result.stderr
    assert not (tmp_path / OWN).exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TuningError("the board stopped answering", "start it"), 19),
        (NoFreeBoardError("no board could be had", "start one"), 8),
        (StorageError("no space left in `/tmp`", "free some"), 13),
    ],
)
def test_a_run_that_ends_by_an_error_tells_what_it_reached_first(fake, error, code, tmp_path):
    calls = []

    def answer(task, point):
        calls.append(point)
        if len(calls) == 3:
            raise error
        return Outcome("ok", (1e-3,))

    fake.answer = answer
    result = run(*TINY, "--trials", 9, "--json", fails=type(error))
    assert result.exception.exit_code == code
    report = json.loads(result.stdout)
    assert (report["ended"], report["new_trials"]) == (str(error), 2)
    assert report["incidents"]["boards_lost"] == 0
    calls.clear()
    assert "2 of 2 kernels have a record" in run(*TINY, "--trials", 9, fails=type(error)).stdout
    fake.answer = lambda *_: Outcome("ok", (1e-3,))
    assert json.loads(run(*TINY, "--trials", 9, "--json").stdout)["ended"] is None


def test_ctrl_c_before_the_first_trial(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tvmattend.tuning.session._tasks", interrupt)
    result = run(*TINY)
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_other_ways_of_stopping_are_ctrl_c(fake, number):
    before = signal.getsignal(number)

    def answer(task, point):
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("the signal did not arrive")

    fake.answer = answer
    result = CliRunner().invoke(cli, ["tune", *TINY])  # the group is what takes the signals
    assert result.exit_code == 130
    assert "interrupted: no trial is recorded" in result.stderr
    assert signal.getsignal(number) is before


def test_nothing_succeeded(fake):
    fake.answer = lambda *_: Outcome("run-error", error="RuntimeError: on fire")
    result = run(*TINY, fails=TuningError)
    assert "0 of 2 kernels have a record" in result.stdout
    assert "RuntimeError: on fire" in str(result.exception)


def test_pruning(tmp_path):
    path = tmp_path / OWN
    for seconds in (3e-3, 1e-3, 2e-3):
        record = replace_of(RECORD, point={"rows": round(seconds * 1e3)}, run_secs=(seconds,))
        RecordFile(path).append(record)
    RecordFile(path).append(FAILED)
    assert run(*TINY, "--prune", 2).stdout == f"{path}: 4 -> 2 records\n"
    assert [record.run_secs for record in read_records(path)[0]] == [(1e-3,), (2e-3,)]
    assert json.loads(run(*TINY, "--prune", 1, "--json", "-o", path.parents[1]).stdout) == {
        "pruned": [{"records": str(path), "before": 2, "after": 1}]
    }


def test_the_time_left_is_that_of_trials_and_not_of_the_start(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(stream, Path("tune.log"))
    task = TaskPlan("conv", "k", "conv2d", 1, 2e6, 900, 0, {})
    progress(Planned(TunePlan("net", HOST, "measured", {}, Path("r.jsonl"), (task,), 100, 500, 50)))
    for done, moment in ((501, 60.0), (502, 61.0), (503, 62.0)):
        now[0] = moment
        progress(TrialDone(RECORD, 0, done, 1e-4))
    left = [line.rpartition(", ")[2] for line in stream.getvalue().splitlines()[-3:]]
    assert left == ["50 s left", "1 min 38 s left", "1 min 37 s left"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    progress = LiveProgress(stream, Path("tune.log"))
    task = TaskPlan("fused_conv2d_add_multiply_silu_and_more", "k", "conv2d", 1, 2e6, 16, 0, {})
    progress(Note("the governor is `ondemand`: times will vary [1/f]"))
    progress(Planned(TunePlan("net", HOST, "measured", {}, Path("r.jsonl"), (task,), 10, 2, 60.0)))
    progress(Building((0,), 4))
    progress(TrialDone(replace_of(RECORD, task=task.name), 0, 3, 1e-4))
    progress(TrialDone(replace_of(FAILED, task=task.name), 0, 4, 1e-4))
    progress.close()
    text = stream.getvalue()
    assert "times will vary [1/f]" in text, "brackets are not markup"
    assert "task 1/1 fused_conv2d_add_multiply...: best 100.0 us, 20 GFLOP/s" in text
    assert "4/12" in text
    assert f"{task.name}: timeout: measuring took more than 1 s" in text
    assert "ETA" in text


def replace_of(record, **change):
    from dataclasses import replace

    return replace(record, **change)


def test_help_needs_no_tvm(monkeypatch):
    assert isinstance(command, click.Command)
    code = (
        "import sys; from click.testing import CliRunner; from tvmattend.cli.tune import command;"
        "result = CliRunner().invoke(command, ['--help']); print(result.exit_code,"
        "[name for name in ('tvm', 'torch', 'rich', 'xgboost') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0 []\n"


@pytest.mark.parametrize("which", ["output", "TMPDIR"])
def test_a_full_disk_is_known_before_the_import(which, monkeypatch, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    usage = shutil.disk_usage
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda place: usage(place)._replace(free=0) if Path(place) == full else usage(place),
    )

    def start(*_):
        raise AssertionError("imported a network")

    monkeypatch.setattr("tvmattend.tuning.session._tasks", start)
    words = ["-o", full / "logs"]
    if which == "TMPDIR":
        monkeypatch.setenv("TMPDIR", str(full))
        words = ["-o", tmp_path / "logs"]
    result = run(*TINY, *words, fails=StorageError)
    assert f"file system of {full}" in str(result.exception)
    assert ("TMPDIR" if which == "TMPDIR" else "--output") in result.exception.hint
    assert not list(full.iterdir())
    assert not (tmp_path / "logs").exists()
    run(*TINY, *words, "--dry-run", fails=AssertionError)  # which writes nothing


def test_more_threads_than_this_machine_has_cores_are_refused(tmp_path):
    refused = run(*TINY, "--threads", "1000", "--trials", "1", fails=TuningError)
    assert "1000 threads, but this machine has" in str(refused.exception)
    assert not (tmp_path / "tuning_logs").exists()
