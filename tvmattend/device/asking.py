# SPDX-License-Identifier: Apache-2.0
"""What a board, or a tracker, says without a session: needs no TVM and disturbs no measurement."""

import re
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from tvmattend.device.board import parse_cpuinfo, words
from tvmattend.device.conditions import Conditions, conditions_from
from tvmattend.device.endpoint import Endpoint, given_address, tracker_summary
from tvmattend.device.serving import wire
from tvmattend.errors import BoardUnreachableError

_AT_ONCE = 64
# Of a session. Python refuses to read numbers of thousands of digits.
_NUMBER = re.compile("[0-9]{1,18}")


@dataclass(frozen=True)
class BoardStatus:
    """A server's account of itself.

    Attributes:
        server: Its name, new with every start; empty if it is TVM's own, which tells nothing.
        busy: Whether it serves a session.
        ended: How its last sessions ended, by their number (`serving.status`).
        core: `cortex-a72`, or several joined by `+`; empty if unknown.
        model: The board's or processor's own name.
        emulated: Whether its times say nothing about silicon.
        conditions: Clock, temperature and so on, now.
        silent: Whether it took the connection and said nothing: frozen, or TVM's own and busy.
    """

    server: str = ""
    busy: bool | None = None
    ended: Mapping[int, str] = field(default_factory=dict)
    core: str = ""
    model: str = ""
    emulated: bool = False
    conditions: Conditions = field(default_factory=Conditions)
    silent: bool = False


def ask_board(host: str, port: int, timeout: float = 3.0) -> BoardStatus | None:
    """Ask the server there for its status.

    Returns:
        The status; an empty one if something serves there that does not tell; None if nothing
        accepts connections, or not in time.
    """
    try:
        with socket.create_connection((host, port), timeout) as connection:
            try:
                return _status(wire.ask(connection))
            except TimeoutError:
                return BoardStatus(silent=True)
            except (OSError, wire.ProtocolError):  # TVM's own server hangs up
                return BoardStatus()
    except OSError:
        return None


def _status(told: Any) -> BoardStatus:
    if not isinstance(told, dict) or not isinstance(told.get("server"), str):
        return BoardStatus()
    facts = told.get("board")
    facts = facts if isinstance(facts, dict) else {}
    ended = told.get("ended")
    conditions = told.get("conditions")
    cpuinfo = facts.get("cpuinfo")
    cpu = parse_cpuinfo(cpuinfo if isinstance(cpuinfo, str) else "")
    return BoardStatus(
        server=told["server"],
        busy=told.get("busy") is True,
        ended={
            int(number): how
            for number, how in (ended.items() if isinstance(ended, dict) else ())
            if _NUMBER.fullmatch(number) and isinstance(how, str)
        },
        core=words(facts.get("core")) or ("" if cpu.x86 else "+".join(cpu.cores)),
        model=words(facts.get("model")) or words(cpu.model),
        emulated=facts.get("emulated") is True,
        conditions=conditions_from(conditions if isinstance(conditions, dict) else {}),
    )


@dataclass(frozen=True)
class FleetBoard:
    """A board that is registered at a tracker.

    Attributes:
        key: The name it is asked for by.
        address: `host:port`, as the tracker gives it out.
        reachable: Whether it answers from here.
        status: What it says of itself.
    """

    key: str
    address: str
    reachable: bool
    status: BoardStatus

    def to_json(self) -> dict[str, Any]:
        """Plain data; null where nothing is known."""
        told = self.status
        return {
            "key": self.key,
            "address": self.address,
            "reachable": self.reachable,
            "busy": told.busy,
            "silent": told.silent,
            "core": told.core or None,
            "model": told.model or None,
            "emulated": told.emulated,
            "governor": told.conditions.governor or None,
            "clock_mhz": told.conditions.clock_mhz,
            "temperature_c": told.conditions.temperature_c,
            "throttled": told.conditions.throttled or None,
        }


def boards_at(tracker: Endpoint, timeout: float = 5.0) -> list[FleetBoard]:
    """Every board of a tracker with what it says of itself, in the order of key and address.

    Args:
        tracker: The tracker; with a key, only the boards of that key.
        timeout: Seconds for the tracker, and for each board.

    Raises:
        BoardUnreachableError: The tracker does not answer, or is none.
    """
    entries, free = registered(tracker, timeout)
    boards = []
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # silent ones are waited for together
        told = list(threads.map(lambda entry: ask_board(entry[1], entry[2], timeout), entries))
    for (key, host, port), answer in zip(entries, told, strict=True):
        status = answer
        if status is not None and status.busy is None:
            # TVM's own server does not tell, but where all or none are free the tracker does.
            count = sum(other == key for other, _, _ in entries)
            busy = None if 0 < free.get(key, 0) < count else free.get(key, 0) == 0
            status = replace(status, busy=busy)
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        boards.append(FleetBoard(key, shown, status is not None, status or BoardStatus()))
    return boards


def registered(
    tracker: Endpoint, timeout: float = 5.0
) -> tuple[Sequence[tuple[str, str, int]], Mapping[str, int]]:
    """Key, host and port of the boards at a tracker, and how many of each key are free.

    Raises:
        BoardUnreachableError: The tracker does not answer, or is none.
    """
    summary = tracker_summary(tracker, timeout)
    try:
        found = [
            (_key(entry["key"]), *given_address(*entry["addr"]))
            for entry in summary["server_info"]
            if "addr" in entry  # a server that has connected and not yet said who it is has none
        ]
        free = {str(key): int(queue["free"]) for key, queue in summary["queue_info"].items()}
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BoardUnreachableError(
            f"tracker {tracker.address} gave a summary that cannot be understood: {error!r}",
            "it must be TVM's own, 0.27: `python -m tvm.exec.rpc_tracker`",
        ) from error
    wanted = [entry for entry in found if tracker.key in {"", entry[0]}]
    return sorted(wanted), free


def _key(told: Any) -> str:
    key = str(told).removeprefix("server:")
    if not key.isprintable():
        raise ValueError(f"key {key!r}")
    return key
