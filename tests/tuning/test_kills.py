# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments of tuning runs: whatever is on the disk is whole, and counted once.

CI kills a few runs; `pytest -m long tests/tuning/test_kills.py` kills 100. Their kernels come from
`sample_tasks` in place of a network, whose import is most of a run that is killed early; CI has one
run on a network too.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tvmattend.target import parse_target
from tvmattend.tuning.record_file import read_records

HOST = parse_target("host", 1)


_SAMPLE = """
import sys
from sample_tasks import matmul
from tvmattend.cli.main import main
from tvmattend.tuning import session
tasks = [matmul(size, name=f"m{size}") for size in range(16, 1616, 16)]
session._tasks = lambda *_: (tasks, None)
main(sys.argv[1:])
"""


def tune(place, total, sample):
    home = Path(__file__).parents[2]
    paths = [str(home), str(home / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [
            *(sys.executable, *(("-c", _SAMPLE) if sample else ("-m", "tvmattend"))),
            *("tune", "--model", "attendnext_tiny"),
            *("--target", "host", "--threads", "1", "--trials", str(total), "--json"),
            *("--number", "1", "--repeat", "1", "--min-repeat-ms", "0"),
        ],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TVMATTEND_CACHE": str(place / "cache"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def survive(place, kills, sample):
    path = place / f"tuning_logs/attendnext_tiny/{HOST.name}/measured/1-threads.jsonl"
    draw = random.Random(0)
    before = 0
    for kill in range(kills):
        with tune(place, 100_000, sample) as process:
            deadline = time.monotonic() + 300
            # Some die while they start, most in their trials, none of which lasts a second.
            wanted = before + draw.choice([0, 1, 1, 2, 3, 5])
            while wanted > before and lines(path) < wanted:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 4.0 if wanted == before else 0.7))
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        records, faults = read_records(path) if path.exists() else ([], [])
        assert len(faults) <= 1, "only the last line may be torn"
        assert len(records) >= before, "what was reported stays"
        before = len(records)
        _, alive = psutil.wait_procs(children, timeout=40)
        assert not alive, "no worker outlives its run"
        print(f"kill {kill + 1}: {before} records", file=sys.stderr, flush=True)  # noqa: T201
    with tune(place, before + 5, sample) as process:
        out, _ = process.communicate(timeout=300)
    report = json.loads(out)
    records, faults = read_records(path)
    assert faults == []
    assert (report["trials"], report["new_trials"], len(records)) == (before + 5, 5, before + 5)
    points = [(record.key, tuple(sorted(record.point.items()))) for record in records]
    assert len(set(points)) == len(points), "no trial twice"


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kills", "sample"), [(1, False), (3, True)])
def test_a_few_kills(tmp_path, kills, sample):
    survive(tmp_path, kills, sample)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_kills(tmp_path):
    survive(tmp_path, 100, sample=True)
