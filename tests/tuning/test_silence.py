# SPDX-License-Identifier: Apache-2.0
"""A board that falls silent and stays so: when a run ends, by the clock on the wall.

It accepts connections, as the kernel of a stuck machine, a firewall or a tunnel does, and then says
nothing any more. `tune --help` and the README promise `--timeout` + 15 s + `--board-wait`, the
latter at least `--timeout` + 10 s. The 15 and the 10 are made smaller here.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from sample_tasks import FakeRanker, matmul

from tvmattend.device.endpoint import Endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.errors import NoFreeBoardError, TuningError
from tvmattend.target import parse_target
from tvmattend.tuning import hire as hiring
from tvmattend.tuning.events import TrialDone, TuneOptions
from tvmattend.tuning.machine import host_machine
from tvmattend.tuning.patience import BOARD_LOST, TOOK_IT_DOWN
from tvmattend.tuning.record_file import RecordFile, read_records
from tvmattend.tuning.records import RecordSet
from tvmattend.tuning.run import TuningRun
from tvmattend.tuning.tally import Tally

HOST = parse_target("host", 1)
CONNECT, SERVER = 4.0, 5.0
OPTIONS = TuneOptions(trials=40, timeout=4.0, board_wait=1.0, number=1, repeat=3, min_repeat_ms=300)
PROMISED = OPTIONS.timeout + CONNECT + (OPTIONS.timeout + SERVER)
# A second for the last look; the rest is this machine's: it ends processes, and may be busy.
SLACK = 1.0 + 4.0


@contextmanager
def tuning(path: Path, endpoint: Endpoint, tally: Tally) -> Iterator[TuningRun]:
    machine = {**host_machine(), "core": "x86_64"}
    crew = hiring.hire(HOST, OPTIONS, endpoint, "measured", machine, None, None, tally)
    with crew as working:
        yield TuningRun(
            model="net",
            target=HOST,
            tasks=[matmul(size, name=f"m{size}") for size in (16, 32, 48, 64)],
            file=RecordFile(path),
            earlier=[],
            found=RecordSet(),
            options=OPTIONS,
            crew=working,
            ranker=FakeRanker(),
            observer=tally,
            incidents=tally.incidents,
        )


def run_until_silence(
    path: Path, endpoint: Endpoint, proxy: FaultProxy, hush: Callable[[], None]
) -> tuple[float, Tally]:
    """Tune; `hush` is called at the third trial. Give the seconds from silence to the end."""
    fell: list[float] = []

    def watch() -> None:
        proxy.silent.wait(60)
        fell.append(time.monotonic())

    def observe(event: object) -> None:
        if isinstance(event, TrialDone) and event.done == 3:
            threading.Thread(target=watch, daemon=True).start()
            hush()

    tally = Tally(observe)
    with tuning(path, endpoint, tally) as run:
        with pytest.raises((TuningError, NoFreeBoardError)):
            run.run()
        return time.monotonic() - fell[0], tally


@pytest.fixture(autouse=True)
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmattend.tuning.board_bench.CONNECT_SECONDS", CONNECT)
    monkeypatch.setattr(hiring, "_SERVER_SECONDS", SERVER)


@pytest.mark.parametrize("where", ["between trials", "in a kernel"])
def test_a_run_ends_when_it_was_promised(tmp_path: Path, where: str) -> None:
    path = tmp_path / "r.jsonl"
    with serve_here(ServerOptions()) as server, FaultProxy(server.port, lambda _: None) as proxy:

        def hush() -> None:
            if where == "in a kernel":
                proxy.fall_silent_after(b"RPCTimeEvaluator", 0.5)
            else:
                proxy.silent.set()

        spent, tally = run_until_silence(path, Endpoint("127.0.0.1", proxy.port), proxy, hush)
    assert spent < PROMISED + SLACK
    records, faults = read_records(path)
    assert not faults
    assert all(record.ok for record in records[:3])
    last = records[-1]
    if where == "in a kernel":
        assert (last.quarantined, last.sent) == (True, 1)
        assert last.error.startswith(TOOK_IT_DOWN)
    else:  # a record only if the next kernel was on its way by then
        assert last.ok or last.error.startswith(BOARD_LOST)
    assert (tally.incidents.lost, tally.incidents.back) == (1, 0)


@contextmanager
def registered(tracker: Endpoint) -> Iterator[FaultProxy]:
    """A board that is at the tracker also while it is silent: its server does not know."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with FaultProxy(port, lambda _: None) as proxy:
        advertise = ("127.0.0.1", proxy.port)
        with serve_here(ServerOptions(port=port, tracker=tracker, advertise=advertise)):
            yield proxy


def test_the_only_board_of_a_fleet_falls_silent(tmp_path: Path, tracker: Endpoint) -> None:
    with registered(tracker) as proxy:
        path = tmp_path / "r.jsonl"
        spent, tally = run_until_silence(path, tracker, proxy, proxy.silent.set)
    assert spent < PROMISED + SLACK
    (reason,) = tally.incidents.left.values()
    assert reason.startswith("left alone for 9 s: ")


def test_a_silent_board_of_a_fleet_loses_nothing(tmp_path: Path, tracker: Endpoint) -> None:
    path = tmp_path / "r.jsonl"
    with registered(tracker), registered(tracker) as proxy:

        def observe(event: object) -> None:
            if isinstance(event, TrialDone) and event.done == 8:
                proxy.silent.set()

        tally = Tally(observe)
        with tuning(path, tracker, tally) as run:
            report = run.run()
    records, faults = read_records(path)
    assert not faults
    assert report.trials == len(records) == OPTIONS.trials
    # On a busy machine a compiler may take too long.
    failed = [record.error for record in records if not record.ok]
    failed = [error for error in failed if not error.startswith("building")]
    assert len(failed) <= 6, failed
    assert all(error.startswith((BOARD_LOST, TOOK_IT_DOWN)) for error in failed), failed
    assert tally.incidents.lost or tally.incidents.broken, "what it held went to the other board"
