# SPDX-License-Identifier: Apache-2.0
"""A real, small tuning run of this machine through the command line: stopped, and gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tvmattend.codegen.schedule import schedule_kernels
from tvmattend.frontend import import_model
from tvmattend.target import parse_target
from tvmattend.transform import lower
from tvmattend.tuning.record_file import read_records
from tvmattend.tuning.records import find_records

HOST = parse_target("host")
QUICK = ("--number", "1", "--repeat", "1", "--min-repeat-ms", "0")


def command(*words):
    return [sys.executable, "-m", "tvmattend", "tune", "--model", "attendnext_tiny", *words]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "PYTHONPATH": path, "TVMATTEND_CACHE": cache}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, environment):
    """A run that got SIGINT after some trials: directory, exit code, output, its children."""
    place = tmp_path_factory.mktemp("run")
    path = (
        place / f"tuning_logs/attendnext_tiny/{HOST.name}/measured/{HOST.num_cores}-threads.jsonl"
    )
    with subprocess.Popen(
        command("--target", "host", "--trials", "200", *QUICK),
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 240
        while not path.exists() or path.read_bytes().count(b"\n") < 5:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return place, path, process.returncode, out, err, children


def test_ctrl_c_leaves_a_valid_file_no_worker_and_exit_code_130(stopped):
    _, path, code, out, err, children = stopped
    assert code == 130
    records, faults = read_records(path)
    assert not faults
    assert len(records) >= 5
    assert f"interrupted: {len(records)} trials of this run ({len(records)} in all)" in err
    assert "all kernels" in out or "kernels have a record" in out
    assert len(children) >= 3, "two builders and a runner"
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_progress_is_plain_lines_and_tvm_is_not_on_the_screen(stopped):
    _, _, _, _, err, _ = stopped
    expected = ("[", "note: ", "records go to", "interrupted: ")
    strange = [
        line
        for line in err.splitlines()
        if not line.startswith(expected) and "trials to run" not in line
    ]
    assert not strange
    assert "\x1b" not in err
    assert len(re.findall(r"^\[\d+/\d+\] task \d+/\d+ \w+: .* left$", err, re.MULTILINE)) >= 4


def test_tvm_has_a_log(stopped, environment):
    log = Path(environment["TVMATTEND_CACHE"]) / "logs" / f"tune-attendnext_tiny-{HOST.name}.log"
    assert log.is_file()
    assert f"TVM's messages to `{log}`" in stopped[4]


def test_a_second_run_goes_on_and_build_uses_what_was_recorded(stopped, environment):
    place, path, *_ = stopped
    before = path.read_bytes()
    recorded = len(read_records(path)[0])
    total = recorded + 12
    done = subprocess.run(
        command("--target", "host", "--trials", str(total), "--json", *QUICK),
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert (report["trials"], report["new_trials"]) == (total, total - recorded)
    assert path.read_bytes().startswith(before)
    records, faults = read_records(path)
    assert (len(records), faults) == (total, [])
    points = [(record.key, tuple(sorted(record.point.items()))) for record in records]
    assert len(set(points)) == total, "no point twice"
    assert all(record.machine["core"] == HOST.cpu for record in records)
    assert not report["errors"], [record.error for record in records if not record.ok]

    found = find_records("attendnext_tiny", HOST, roots=[place / "tuning_logs"])
    lowered = lower(import_model("attendnext_tiny").ir_module, HOST)
    scheduled = schedule_kernels(lowered, HOST, found)
    tuned = sum(task["best_secs"] is not None for task in report["tasks"])
    assert tuned == len(report["tasks"])
    assert scheduled.origins()["measured"] == tuned
    for kernel in scheduled.kernels:
        best = found.best(kernel.key, HOST.num_cores)
        assert best is not None
        assert (dict(kernel.point), kernel.threads) == (dict(best.point), best.threads)
