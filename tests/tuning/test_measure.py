# SPDX-License-Identifier: Apache-2.0
"""Real worker processes, here and behind a real RPC server on this machine."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import tvm
from sample_tasks import (
    add_one,
    crashing,
    hanging,
    matmul,
    scheduled,
    unbuildable,
    unloadable,
    unschedulable,
)

from tvmattend.device.endpoint import Endpoint, parse_endpoint, tracker_endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.errors import StorageError, ToolMissingError, TuningError
from tvmattend.target import parse_target
from tvmattend.tuning import workers as functions
from tvmattend.tuning.bench import Artifact, BoardLostError, Candidate, Outcome, Repetition
from tvmattend.tuning.measure import KernelMeasurer
from tvmattend.tuning.pools import Worker
from tvmattend.tuning.record import one_line

HOST = parse_target("host", 2)
QUICK = Repetition(number=1, repeat=2, min_repeat_ms=0, timeout=3.0)


def measurer(endpoint=None, **options):
    return KernelMeasurer(HOST, QUICK, endpoint, "measured", {}, **options)


def outcome_of(machine, task):
    (built,) = machine.build([scheduled(task)])
    return built if isinstance(built, Outcome) else machine.run(built)


def workers():
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "tvmattend.device.killable" in " ".join(child.cmdline())
    ]


def test_ctrl_c_that_the_first_kernel_swallows_leaves_nothing(monkeypatch, tmp_path):
    def swallow(*_):
        with contextlib.suppress(KeyboardInterrupt):  # as TVM does with what its callbacks raise
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(functions, "make_kernel", swallow)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        measurer()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def here():
    with measurer() as machine:
        yield machine


@pytest.fixture(scope="module")
def board():
    with (
        serve_here(ServerOptions()) as server,
        measurer(parse_endpoint(server.address)) as machine,
    ):
        yield machine


@pytest.fixture(params=["here", "board"])
def machine(request):
    return request.getfixturevalue(request.param)


def test_a_batch_is_built_in_order_and_timed(machine):
    task = matmul(128)
    slow, fast = {"rows": 1, "cols": 4}, {"rows": 4, "cols": 32}
    broken = Candidate(task, slow, None, "ScheduleError: no such loop")
    built = machine.build([
        scheduled(task, slow),
        broken,
        scheduled(unbuildable()),
        scheduled(task, fast),
    ])
    assert [type(each) for each in built] == [Artifact, Outcome, Outcome, Artifact]
    assert built[1] == Outcome("build-error", error="schedule: ScheduleError: no such loop")
    assert built[2].status == "build-error"
    assert "expected top-level entity" in one_line(built[2].error)
    first, second = machine.run(built[0]), machine.run(built[3])
    assert [first.status, second.status] == ["ok", "ok"]
    assert [len(first.run_secs), len(second.run_secs)] == [2, 2]
    assert min(first.run_secs) > min(second.run_secs) > 1e-6, "4 million FLOP take their time"


def test_a_kernel_that_cannot_be_loaded_is_a_run_error(machine):
    outcome = outcome_of(machine, unloadable())
    assert outcome.status == "run-error"
    assert "no_such_function_anywhere" in outcome.error


def test_a_kernel_that_crashes_is_a_run_error_and_the_next_one_runs(machine):
    outcome = outcome_of(machine, crashing())
    assert outcome.status == "run-error"
    assert one_line(outcome.error) == "CrashError: the process that ran the kernel died"
    assert outcome_of(machine, add_one()).status == "ok"


def test_a_kernel_that_hangs_is_a_timeout_and_the_next_one_runs(machine):
    begun = time.monotonic()
    outcome = outcome_of(machine, hanging())
    assert (outcome.status, outcome.error) == ("timeout", "measuring took more than 3 s")
    assert time.monotonic() - begun < 20
    assert outcome_of(machine, add_one()).status == "ok"


def test_a_build_that_hangs_is_a_timeout(tmp_path):
    # A linker that waits, but not for the first thing that it links, which is the warm-up.
    script = tmp_path / "linker"
    script.write_text(
        f'#!/bin/sh\nif [ -e "{tmp_path}/warm" ]; then sleep 60; fi\n'
        f'touch "{tmp_path}/warm"\nexec cc "$@"\n'
    )
    script.chmod(0o755)
    with measurer(cross_compiler=str(script)) as machine:
        (built,) = machine.build([scheduled(add_one())])
    assert built == Outcome("timeout", error="building took more than 3 s")


@contextlib.contextmanager
def small_files(size):
    """What `ulimit -f` does: for this process, and for those that it starts from now on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_machine_that_cannot_write_is_no_verdict_on_a_kernel():
    with measurer() as machine:
        # The builder's processes start with the first kernel.
        with small_files(2048), pytest.raises(StorageError, match="File too large") as caught:
            machine.build([scheduled(matmul(32)), scheduled(add_one())])
        assert "ulimit -f" in caught.value.hint
        assert "repeat the command" in caught.value.hint
    with small_files(2048), pytest.raises(StorageError, match="File too large"):
        measurer()


def test_a_full_disk_is_no_verdict_on_a_kernel(here, monkeypatch):
    candidate = scheduled(unbuildable())  # whatever it says
    (built,) = here.build([candidate])
    assert built.status == "build-error"
    monkeypatch.setattr(
        "tvmattend.tuning.own_faults.no_room",
        lambda place, _: StorageError(f"no space left in `{place}`", "free some"),
    )
    with pytest.raises(StorageError, match=r"no space left in `[^`]*`$") as caught:
        here.build([candidate])
    assert "tvmattend-workplace-" not in str(caught.value), "that one goes with the run"


def killing_linker(tmp_path, times, whom="$PPID"):
    """A linker that kills the process which calls it, so often; the warm-up is let alone."""
    script = tmp_path / "linker"
    script.write_text(
        "#!/bin/sh\n"
        f'count=$(cat "{tmp_path}/count" 2>/dev/null || echo 0)\n'
        f'echo $((count + 1)) > "{tmp_path}/count"\n'
        f'if [ "$count" -gt 0 ] && [ "$count" -le {times} ]; then kill -9 {whom}; exit 1; fi\n'
        'exec cc "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_a_builder_that_is_killed_once_builds_once_more(tmp_path):
    with measurer(cross_compiler=killing_linker(tmp_path, 1)) as machine:
        assert outcome_of(machine, add_one()).status == "ok"
    assert (tmp_path / "count").read_text() == "3\n"


@pytest.mark.parametrize(
    ("whom", "what"), [("$PPID", "SIGKILL"), ("$$", "the linker: exit code -9")]
)
def test_builders_that_are_killed_are_no_verdict_on_a_kernel(tmp_path, monkeypatch, whom, what):
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with (
        measurer(cross_compiler=killing_linker(tmp_path, 9, whom)) as machine,
        pytest.raises(TuningError, match=rf"are killed \(.*{what}, twice\)") as caught,
    ):
        machine.build([scheduled(add_one())])
    assert "memory" in caught.value.hint
    assert not list(place.iterdir()), "nor do they leave anything"


def test_a_missing_linker_is_known_before_the_first_trial():
    before = set(workers())
    with pytest.raises(ToolMissingError, match="no-such-linker"):
        measurer(cross_compiler="no-such-linker")
    assert set(workers()) == before


def test_every_upload_has_a_name_of_its_own(here):
    built = here.build([scheduled(add_one()) for _ in range(3)])
    assert len({Path(each.path).name for each in built}) == 3


def test_the_pool_has_as_many_threads_as_the_target_asks_for():
    # On x86 TVM by itself takes one for two logical cores, and cannot be told later.
    worker = Worker(timeout=60)
    try:
        with pytest.raises(RuntimeError, match="no_such_kernel"):
            worker.call(functions.time_local, "no_such_kernel.so", (), {}, HOST.num_cores)
        assert worker.call(tvm.runtime.num_threads) == HOST.num_cores
    finally:
        worker.end()


def test_a_server_that_dies_is_a_lost_board_and_is_found_again():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = serve_here(ServerOptions(port=port))
    try:
        with measurer(Endpoint("127.0.0.1", port)) as machine:
            built = machine.build([scheduled(add_one())])[0]
            assert machine.run(built).status == "ok"
            server.stop()
            assert not machine.answers(5)
            with pytest.raises(BoardLostError) as caught:
                machine.run(built)
            assert "Connection refused" in one_line(str(caught.value))
            server = serve_here(ServerOptions(port=port))
            assert machine.answers(5)
            assert machine.run(built).status == "ok", "the library is still there"
    finally:
        server.stop()


def test_a_tracker_gives_the_board(tmp_path):
    from tvm.rpc.tracker import Tracker

    tracker = Tracker("127.0.0.1", port=19190, port_end=19290, silent=True)
    try:
        entry = tracker_endpoint(f"127.0.0.1:{tracker.port}", "mine")
        with serve_here(ServerOptions(tracker=entry)), measurer(entry) as machine:
            assert outcome_of(machine, add_one()).status == "ok"
            assert outcome_of(machine, add_one()).status == "ok", "it came back to the tracker"
    finally:
        tracker.terminate()


def test_closing_leaves_no_process_and_no_file():
    before = set(workers())
    machine = measurer()
    (built,) = machine.build([scheduled(add_one())])
    assert Path(built.path).is_file()
    assert set(workers()) - before
    machine.close()
    deadline = time.monotonic() + 5
    while set(workers()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(workers()) - before
    assert not Path(built.path).parent.exists()


def test_an_unschedulable_candidate_needs_no_builder(here):
    task = unschedulable()
    assert here.build([Candidate(task, task.space.default, None, "why")]) == [
        Outcome("build-error", error="schedule: why")
    ]


def test_a_builder_ends_with_its_run_however_that_ends():
    program = (
        "import os, time\n"
        "from tvmattend.tuning.pools import Pool\n"
        "pool = Pool(timeout=600, processes=1)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "pool.submit(time.sleep, 600).result()\n"
    )
    home = str(Path(functions.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": home}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
        worker.wait(20)
