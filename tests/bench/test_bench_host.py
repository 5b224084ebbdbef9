# SPDX-License-Identifier: Apache-2.0
"""The description of the machine, and how busy it was."""

import json
import os
import re
import subprocess
import sys
import time

from tvmattend.bench.host import Load, choose_cpus, describe_machine, machine_line


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_description_is_plain_data() -> None:
    machine = describe_machine([0])
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cores"] == os.cpu_count()
    assert machine["bound_to"] == [0]
    assert machine["kernel"] == os.uname().release
    assert "torch" in machine["packages"]
    assert machine_line(machine)


def test_core_is_told_and_older_results_have_none() -> None:
    machine = describe_machine([0])
    if machine["arch"] == "x86_64":
        assert re.fullmatch(r"family \d+ model \d+", machine["core"])
        assert machine["core"] in machine_line(machine)
    else:
        assert machine["core"] is None
    older = {key: value for key, value in machine.items() if key != "core"}
    assert "family" not in machine_line(older)


def test_chosen_cores_are_usable_and_as_many_as_asked_for() -> None:
    allowed = os.sched_getaffinity(0)
    for threads in range(1, len(allowed) + 1):
        chosen = choose_cpus(threads)
        assert len(set(chosen)) == threads
        assert set(chosen) <= allowed


def test_own_time_is_not_others() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    ours, theirs = Load(cpus, [os.getpid()]), Load(cpus, [])
    start = time.monotonic()
    burn(0.5)
    passed = (time.monotonic() - start) * len(cpus)
    own, foreign = ours.others(), theirs.others()
    assert own is not None
    assert foreign is not None
    # Half a second of all cores' time, but for the hundredths that /proc counts in.
    assert foreign - own > 0.25 / passed


def test_load_of_a_process_that_is_gone_is_unknown() -> None:
    assert Load([0], [2**22 + 1]).others() is None


def test_a_runtime_that_dies_does_not_hide_what_others_use() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as mine:
        load = Load(sorted(os.sched_getaffinity(0)), [os.getpid(), mine.pid])
        mine.kill()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    assert load.others() is not None
