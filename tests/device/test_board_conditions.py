# SPDX-License-Identifier: Apache-2.0
"""Governor, clock, temperature and throttling, from a tree of files and from served boards."""

import json
import math
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvmattend.device.asking import BoardStatus, ask_board, boards_at
from tvmattend.device.conditions import Conditions, conditions_from, disturbance
from tvmattend.device.endpoint import Endpoint, close_session, connect
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.device.serving.conditions import file_reader, read_conditions, vcgencmd
from tvmattend.errors import BoardUnreachableError

CPU = "sys/devices/system/cpu/cpu0"
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI = {
    f"{CPU}/cpufreq/scaling_governor": "performance\n",
    f"{CPU}/cpufreq/scaling_cur_freq": "1500000\n",
    f"{CPU}/cpufreq/cpuinfo_max_freq": "1800000\n",
    "sys/class/thermal/thermal_zone0/temp": "48685\n",
    FIRMWARE: "50000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "thermal-cpufreq-0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
}


def tree(place: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def read(place: Path) -> Conditions:
    return conditions_from(read_conditions(file_reader(str(place)), vcgencmd(str(place))))


def test_a_raspberry_pi_tells_everything(tmp_path: Path) -> None:
    found = read(tree(tmp_path, PI))
    assert found == Conditions("performance", 1500.0, 1800.0, 48.685, 0x50000, 0)
    assert found.throttled == "", "it was throttled once, and a fan is not throttling"
    assert found.to_json()["clock_mhz"] == 1500.0


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found == Conditions()
    assert found.to_json() == {}
    assert disturbance(found, found) == ""


def test_without_the_file_vcgencmd_is_asked(tmp_path: Path) -> None:
    tree(
        tmp_path, {"usr/bin/vcgencmd": "#!/bin/sh\n[ $1 = get_throttled ] && echo throttled=0x4\n"}
    )
    (tmp_path / "usr/bin/vcgencmd").chmod(0o755)
    assert read(tmp_path).throttled == "throttled"


@pytest.mark.parametrize("text", ["", "hot", "0x", "-", "²", "9" * 400, "9" * 5000])
def test_nonsense_in_the_files_is_nothing(tmp_path: Path, text: str) -> None:
    found = read(tree(tmp_path, dict.fromkeys(PI, text)))
    assert found == Conditions(governor=text)


def test_nonsense_from_a_board_is_nothing() -> None:
    told = {"governor": 7, "clock_mhz": "fast", "cooling": True, "firmware_flags": 1.5}
    assert conditions_from(told) == Conditions()
    for value in (math.nan, -math.inf, 10**400):
        assert conditions_from({"clock_mhz": value, "temperature_c": value}) == Conditions()


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {}, ""),
        ({"firmware_flags": 0x1}, {"firmware_flags": 0x1}, "under-voltage"),
        ({}, {"firmware_flags": 0x6}, "the clock is capped, throttled"),
        ({"firmware_flags": 0x10000}, {"firmware_flags": 0x10000}, ""),
        ({"firmware_flags": 0}, {"firmware_flags": 0x80000}, "soft temperature limit"),
        ({}, {"cooling": 2}, "the kernel cools by 2 steps"),
        ({"throttle_count": 7}, {"throttle_count": 8}, "the core slowed itself down"),
        ({"throttle_count": 7}, {"throttle_count": 7}, ""),
        (
            {"governor": "performance", "clock_mhz": 1500.0},
            {"governor": "performance", "clock_mhz": 600.0},
            "the clock changed from 1500 to 600 MHz",
        ),
        (
            {"governor": "ondemand", "clock_mhz": 600.0},
            {"governor": "ondemand", "clock_mhz": 1500.0},
            "",
        ),
        (
            {"governor": "performance"},
            {"governor": "ondemand"},
            "the governor changed from performance to ondemand",
        ),
    ],
)
def test_what_spoils_a_sample(before: dict, after: dict, reason: str) -> None:
    assert disturbance(conditions_from(before), conditions_from(after)) == reason


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Endpoint, Path]]:
    place = tree(tmp_path / "board", PI)
    with serve_here(ServerOptions(sysfs=place), tmp_path / "log") as server:
        yield Endpoint(server.host, server.port), place


def test_a_served_board_tells_its_conditions_also_while_it_is_busy(
    served: tuple[Endpoint, Path],
) -> None:
    board, place = served
    status = ask_board(board.host, board.port)
    assert status is not None
    assert (status.busy, status.ended) == (False, {})
    assert status.conditions.temperature_c == 48.685
    session = connect(board)
    try:
        (place / "sys/class/thermal/thermal_zone0/temp").write_text("81000")
        during = ask_board(board.host, board.port)
        assert during is not None
        assert (during.busy, during.server) == (True, status.server)
        assert during.conditions.temperature_c == 81.0
        told = json.loads(str(session.get_function("tvmattend.conditions")()))
        assert told["temperature_c"] == 81.0
        mine = json.loads(str(session.get_function("tvmattend.session")()))
        assert mine == {"server": status.server, "session": 1}
    finally:
        close_session(session)
    # The client says that it goes and goes; the server may see the second before the first.
    assert ended(board) in ({1: "closed"}, {1: "client left"})


def ended(board: Endpoint) -> dict[int, str]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = ask_board(board.host, board.port)
        if status is not None and status.ended:
            return dict(status.ended)
        time.sleep(0.05)
    return {}


def test_the_end_of_a_session_is_remembered(served: tuple[Endpoint, Path]) -> None:
    board, _ = served
    session = connect(board, session_timeout=0.3)
    assert ended(board) == {1: "limit"}
    close_session(session)


def test_a_client_waits_for_its_turn_while_others_ask(served: tuple[Endpoint, Path]) -> None:
    board, _ = served
    first = connect(board)
    with socket.create_connection((board.host, board.port)) as silent:
        for _ in range(5):
            assert ask_board(board.host, board.port) is not None
        close_session(first)
        silent.close()
    second = connect(board)
    close_session(second)


def test_what_is_no_server_of_ours(ssh_port: str, closed_port: str, silent_port: str) -> None:
    def ask(address: str) -> BoardStatus | None:
        host, _, port = address.rpartition(":")
        return ask_board(host, int(port), timeout=0.5)

    assert ask(closed_port) is None
    assert ask(ssh_port) == BoardStatus()
    assert ask(silent_port) == BoardStatus(silent=True)


def test_the_boards_of_a_tracker(tmp_path: Path, tracker: Endpoint) -> None:
    place = tree(tmp_path / "board", {**PI, FIRMWARE: "4"})
    other = Endpoint(tracker.host, tracker.port, "pi5")
    with (
        serve_here(ServerOptions(tracker=tracker, sysfs=place)) as first,
        serve_here(ServerOptions(tracker=other)) as second,
    ):
        (mine,) = boards_at(tracker)
        told = mine.to_json()
        assert (told["key"], told["address"], told["busy"]) == ("pi4", first.address, False)
        assert (told["governor"], told["clock_mhz"]) == ("performance", 1500.0)
        assert (told["temperature_c"], told["throttled"]) == (48.685, "throttled")
        everyone = boards_at(Endpoint(tracker.host, tracker.port))
        assert [board.address for board in everyone] == [first.address, second.address]
        session = connect(other)
        assert [board.status.busy for board in boards_at(other)] == [True]
        close_session(session)


def test_sessions_are_known_by_numbers(silent_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nonsense = dict.fromkeys(("²", "", "٣", "-1", "9" * 5000), "closed")
    told = {"server": "x", "ended": {"7": "closed", "8": ["closed"], **nonsense}}
    monkeypatch.setattr("tvmattend.device.asking.wire.ask", lambda _: told)
    status = ask_board("127.0.0.1", int(silent_port.rpartition(":")[2]))
    assert status is not None
    assert status.ended == {7: "closed"}


def test_what_a_board_says_of_itself_does_a_terminal_no_harm(
    silent_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\x1b[2J\ud800"
    for board in ({"model": text, "core": text}, {"cpuinfo": f"Model : {text}"}, {"core": [text]}):
        told = {"server": "x", "board": board, "conditions": {"governor": text}}
        monkeypatch.setattr("tvmattend.device.asking.wire.ask", lambda _, told=told: told)
        status = ask_board("127.0.0.1", int(silent_port.rpartition(":")[2]))
        assert status is not None
        for shown in (status.core, status.model, status.conditions.governor):
            assert shown in {"", r"\x1b[2J\xd800"}


def test_a_tracker_that_is_none_or_gives_nonsense(
    ssh_port: str, closed_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (ssh_port, closed_port):
        host, _, port = address.rpartition(":")
        with pytest.raises(BoardUnreachableError, match=address):
            boards_at(Endpoint(host, int(port)), timeout=1)
    for entry, free in (
        ({"addr": ["pi4", 9090]}, 0),
        ({"key": "server:\ud800", "addr": ["pi4", 9090]}, 0),
        ({"key": "server:pi4", "addr": ["pi4", 70000]}, 0),
        ({"key": "server:pi4", "addr": ["pi4..lan", 9090]}, 0),
        ({"key": "server:pi4", "addr": [7, 9090]}, 0),
        ({"key": "server:pi4", "addr": ["pi4", 9090]}, math.inf),
    ):
        told = {"server_info": [entry], "queue_info": {"pi4": {"free": free}}}
        monkeypatch.setattr("tvmattend.device.asking.tracker_summary", lambda *_, told=told: told)
        with pytest.raises(BoardUnreachableError, match="cannot be understood"):
            boards_at(Endpoint("t", 1))


def test_asking_needs_no_tvm() -> None:
    import subprocess

    code = "import sys, tvmattend.device.asking; print('tvm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
