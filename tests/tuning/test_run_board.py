# SPDX-License-Identifier: Apache-2.0
"""A run over a real RPC server that dies on the way."""

import contextlib
import resource
import socket
from types import SimpleNamespace

import pytest
from sample_tasks import FakeRanker, crashing, hanging, matmul

from tvmattend.device.board import probe
from tvmattend.device.endpoint import Endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.device.sending import send
from tvmattend.errors import BoardFullError, BoardUnreachableError, TuningError
from tvmattend.target import parse_target
from tvmattend.tuning.bench import Repetition
from tvmattend.tuning.crew import Alone
from tvmattend.tuning.events import BoardBack, BoardGone, Repeated, TrialDone, TuneOptions
from tvmattend.tuning.measure import KernelMeasurer
from tvmattend.tuning.patience import Patience
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.records import RecordSet
from tvmattend.tuning.run import TuningRun

HOST = parse_target("host", 2)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def prepared(path, port, tasks, trials, observer):
    repetition = Repetition(number=1, repeat=1, min_repeat_ms=0, timeout=3.0)
    with KernelMeasurer(HOST, repetition, Endpoint("127.0.0.1", port), "measured", {}) as measurer:
        yield TuningRun(
            model="net",
            target=HOST,
            tasks=tasks,
            file=RecordFile(path),
            earlier=read_records(path)[0] if path.exists() else [],
            found=RecordSet(),
            options=TuneOptions(trials=trials),
            crew=Alone(measurer, Patience(observer, waits=(0.1, 0.2))),
            ranker=FakeRanker(),
            observer=observer,
        )


def test_a_server_that_dies_and_comes_back_and_dies_for_good(tmp_path, port):
    path, tasks = tmp_path / "r.jsonl", [matmul()]
    servers = [serve_here(ServerOptions(port=port))]
    seen = []

    def observe(event):
        seen.append(type(event))
        if isinstance(event, TrialDone) and event.done in {2, 4}:
            servers[-1].stop()
        if isinstance(event, BoardGone) and event.attempt == 2 and seen.count(BoardBack) == 0:
            servers.append(serve_here(ServerOptions(port=port)))

    try:
        with (
            prepared(path, port, tasks, 16, observe) as run,
            pytest.raises(TuningError, match="did not come back") as caught,
        ):
            run.run()
    finally:
        for server in servers:
            server.stop()
    assert seen.count(BoardBack) == 1
    records, faults = read_records(path)
    assert not faults
    assert [record.status for record in records] == ["ok"] * 4, "the fifth was never sent"
    assert "4 trials of this run" in caught.value.hint

    with (
        serve_here(ServerOptions(port=port)),
        prepared(path, port, tasks, 16, lambda _: None) as run,
    ):
        report = run.run()
    assert (report.trials, report.errors) == (16, 0)
    assert report.tasks[0].default_secs is not None


def test_kernels_that_crash_or_hang_do_not_stop_the_others(tmp_path, port):
    path = tmp_path / "r.jsonl"
    with (
        serve_here(ServerOptions(port=port)),
        prepared(path, port, [crashing(), hanging(), matmul()], 4, lambda _: None) as run,
    ):
        run.run()
    status = {record.task: record.status for record in read_records(path)[0]}
    assert status == {"crashing": "run-error", "hanging": "timeout", "matmul": "ok"}


def limit_files(server, most):
    """What a server has no room for it keeps the beginning of, as on a full disk."""
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def test_a_full_board_is_waited_for_and_no_kernel_is_blamed(tmp_path, port):
    path, reasons = tmp_path / "r.jsonl", []

    def observe(event):
        if isinstance(event, TrialDone) and event.done in {2, 4}:
            limit_files(server, 1024)
        if isinstance(event, Repeated):
            reasons.append(event.reason)
            if len(reasons) == 1:
                limit_files(server, resource.RLIM_INFINITY)

    with (
        serve_here(ServerOptions(port=port)) as server,
        prepared(path, port, [matmul()], 6, observe) as run,
        pytest.raises(BoardFullError, match=f"^no trial can be made: .*:{port}: ") as caught,
    ):
        run.run()
    assert f"127.0.0.1:{port}: the board has kept 1024 of the" in reasons[0]
    assert [record.status for record in read_records(path)[0]] == ["ok"] * 4
    assert "4 trials of this run" in caught.value.hint
    assert "free some space on the board" in caught.value.hint


def test_a_full_board_is_told_before_a_run_begins(port):
    with serve_here(ServerOptions(port=port)) as server:
        limit_files(server, 1024)
        with pytest.raises(BoardFullError, match=f"{port}: the board has kept 1024 of") as caught:
            probe(Endpoint("127.0.0.1", port), HOST)
    assert caught.value.exit_code == 13


def test_what_arrives_damaged_is_no_full_disk(port):
    session = SimpleNamespace(upload=lambda *_: None, download=lambda _: b"kernel?")
    with pytest.raises(BoardUnreachableError, match=f"{port}: a file arrived with other bytes"):
        send(session, Endpoint("127.0.0.1", port), b"kernel!", "k.so")
