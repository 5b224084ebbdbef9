# SPDX-License-Identifier: Apache-2.0
"""One board as a bench: conditions, deadlines on this side, and whose fault a broken session is."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fault_proxy import Fault, FaultProxy
from sample_tasks import add_one, crashing, hanging, matmul, scheduled

from tvmattend.device.asking import BoardStatus
from tvmattend.device.endpoint import Endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.device.serving.wire import SESSION_FUNCTION
from tvmattend.errors import StorageError
from tvmattend.target import parse_target
from tvmattend.tuning.attempt import Job, attempt, read_notes
from tvmattend.tuning.bench import BoardLostError, LinkBrokenError, Outcome, Repetition
from tvmattend.tuning.board_bench import BoardBench
from tvmattend.tuning.measure import KernelMeasurer
from tvmattend.tuning.record import one_line

HOST = parse_target("host", 1)
QUICK = Repetition(number=1, repeat=2, min_repeat_ms=0, timeout=4.0)
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
TEMPERATURE = "sys/class/thermal/thermal_zone0/temp"


@contextlib.contextmanager
def machine_at(port):
    endpoint = Endpoint("127.0.0.1", port)
    with KernelMeasurer(HOST, QUICK, endpoint, "measured", {}) as machine:
        yield machine


def built(machine, task):
    (artifact,) = machine.build([scheduled(task)])
    assert not isinstance(artifact, Outcome), artifact
    return artifact


def test_conditions_are_read_before_and_after_and_a_hot_board_is_left_alone(tmp_path):
    for name, text in ((FIRMWARE, "0"), (TEMPERATURE, "48000")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with serve_here(ServerOptions(sysfs=tmp_path)) as server, machine_at(server.port) as machine:
        kernel = built(machine, matmul())
        good = machine.run(kernel)
        told = {"temperature_c": 48.0, "firmware_flags": 0}
        assert (good.status, good.disturbed) == ("ok", "")
        assert good.conditions == {"before": told, "after": told}
        (tmp_path / FIRMWARE).write_text("50005")
        hot = machine.run(kernel)
        assert hot.rest
        assert hot.disturbed == "under-voltage, throttled"
        assert hot.run_secs == (), "nothing was run"
        forced = machine.run(kernel, hot_too=True)
        assert len(forced.run_secs) == 2
        assert forced.disturbed == hot.disturbed


@pytest.fixture
def stock_server():
    """TVM's own server, as the README says to start it on a board."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--port", str(port), "--port-end", str(port + 1)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        try:
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_tvms_own_server_will_do(stock_server):
    with machine_at(stock_server) as machine:
        assert machine.run(built(machine, matmul())).status == "ok"
        outcome = machine.run(built(machine, hanging()))
        assert outcome.status == "timeout"
        assert machine.run(built(machine, add_one())).status == "ok"


def test_a_board_that_falls_silent_is_given_up_in_time_and_nobody_is_blamed(monkeypatch):
    monkeypatch.setattr("tvmattend.tuning.board_bench.CONNECT_SECONDS", 3.0)
    faults = {}
    with serve_here(ServerOptions()) as server, FaultProxy(server.port, faults.get) as proxy:
        with machine_at(proxy.port) as machine:
            kernel = built(machine, matmul())
            assert machine.run(kernel).status == "ok"
            uploading = Path(kernel.path).stat().st_size // 2
            for after in (0, 300, uploading):
                faults |= dict.fromkeys(range(100), None)
                # A connection to see that the port is open, then the session.
                faults[proxy.connections] = faults[proxy.connections + 1] = Fault(
                    "half-open", after
                )
                begun = time.monotonic()
                with pytest.raises((LinkBrokenError, BoardLostError)):
                    machine.run(kernel)
                assert time.monotonic() - begun < QUICK.timeout + 3.0 + 10.0
                time.sleep(QUICK.timeout)  # the server's own limit
                assert machine.run(kernel).status == "ok"
        assert proxy.happened["half-open"] == 3


@pytest.mark.parametrize("kind", ["cut", "garbage", "corrupt"])
def test_what_the_link_breaks_is_not_the_kernels_fault(kind):
    faults = {}
    with serve_here(ServerOptions()) as server, FaultProxy(server.port, faults.get) as proxy:
        with machine_at(proxy.port) as machine:
            kernel = built(machine, matmul())
            assert machine.run(kernel).status == "ok"
            for after in (400, 5000):
                faults[proxy.connections + 1] = Fault(kind, after)
                with contextlib.suppress(LinkBrokenError, BoardLostError):
                    outcome = machine.run(kernel)
                    assert outcome.status == "ok", outcome.error
            assert machine.run(kernel).status == "ok"
        assert proxy.happened[kind] == 2


def test_a_server_that_is_killed_in_a_kernel_is_a_lost_board():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with serve_here(ServerOptions(port=port)) as server, machine_at(port) as machine:
        kernel = built(machine, hanging())
        machine.answers(5)
        threading.Timer(2.0, os.kill, (server.pid, signal.SIGKILL)).start()

        def run_until_it_is_gone():
            for _ in range(20):  # the worker may need longer than two seconds to start
                machine.run(kernel)

        with pytest.raises(BoardLostError) as caught:
            run_until_it_is_gone()
    assert caught.value.args


def test_a_crash_is_believed_when_it_shows_twice():
    with serve_here(ServerOptions()) as server, machine_at(server.port) as machine:
        outcome = machine.run(built(machine, crashing()))
    assert (outcome.status, outcome.sent) == ("run-error", 2)
    assert one_line(outcome.error).startswith("CrashError")


@pytest.mark.parametrize("later", [BoardStatus(), None])
def test_an_answer_that_is_garbled_or_missing_does_not_replace_a_good_one(
    tmp_path, monkeypatch, later
):
    good = BoardStatus(server="a", busy=True)
    answers = [good, later, later]
    monkeypatch.setattr("tvmattend.tuning.board_bench.ask_board", lambda *_: answers.pop(0))
    monkeypatch.setattr("tvmattend.tuning.board_bench._ASK_PAUSE", 0.0)
    bench = BoardBench(Endpoint("pi4", 9090), QUICK, HOST, tmp_path / "probe", tmp_path)
    assert bench._account({"server": "a", "session": 3}) == good
    assert answers == []


def job(tmp_path):
    return Job(
        board=Endpoint("127.0.0.1", 1),
        match_key="",
        session_timeout=1.0,
        library="unused",
        arguments=(),
        threads=1,
        number=1,
        repeat=1,
        min_repeat_ms=0,
        progress=str(tmp_path / "notes"),
        probe="unused",
    )


class Teller:
    """A session with a server that tells who it is, and hangs up after that."""

    def __init__(self, told):
        self.told = told

    def get_function(self, name):
        if name != SESSION_FUNCTION:
            raise RuntimeError("hung up")
        return lambda: self.told


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"server": "a", "session": 3}, {"server": "a", "session": 3}),
        ({"server": "a", "session": 3, "phase": "run", "error": "none", "seconds": [1.0]},
         {"server": "a", "session": 3}),
        ({"server": "a"}, {}),
        ({"server": "a", "session": "x"}, {}),
        ({"server": 7, "session": 3}, {}),
        ([], {}),
        (None, {}),
    ],
)  # fmt: skip
def test_a_server_tells_who_it_is_and_nothing_else(tmp_path, monkeypatch, told, known):
    text = "nonsense" if told is None else json.dumps(told)
    monkeypatch.setattr("tvmattend.tuning.attempt.open_session", lambda *_, **__: Teller(text))
    result = attempt(job(tmp_path))
    assert "RuntimeError: hung up" in result.pop("error")
    assert result == {"phase": "prepare", "alive": False, **known}
    assert read_notes(tmp_path / "notes") == {"phase": "prepare", **known}


def test_no_room_for_the_notes_of_a_trial_is_not_the_boards_fault(tmp_path):
    nowhere = replace(job(tmp_path), progress=str(tmp_path / "no" / "such" / "place"))
    with pytest.raises(StorageError, match="the notes of a trial could not be written"):
        attempt(nowhere)
