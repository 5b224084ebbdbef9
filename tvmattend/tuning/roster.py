# SPDX-License-Identifier: Apache-2.0
"""The boards of a key: who is there, who differs from the first, and who is not used."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tvmattend.device.asking import registered
from tvmattend.device.board import BoardInfo
from tvmattend.device.endpoint import Endpoint
from tvmattend.tuning.events import BoardJoined, BoardLeft, Event
from tvmattend.tuning.machine import board_machine, describe_machine

# Clocks within this share of each other are the same.
_CLOCK_TOLERANCE = 0.05


class Roster:
    """What a fleet knows of its boards; used by all lanes.

    Args:
        endpoint: The tracker, and the key.
        first: Description of the board that was met before the run, the measure of the others.
        tell: Told of who joins, leaves, differs or is refused.
    """

    def __init__(
        self, endpoint: Endpoint, first: Mapping[str, Any], tell: Callable[[Event], None]
    ) -> None:
        self._endpoint = endpoint
        self._first = first
        self._tell = tell
        self._lock = threading.Lock()
        self._machines: dict[Endpoint, Mapping[str, Any]] = {}
        self._refused: dict[Endpoint, str] = {}
        self._resting: dict[Endpoint, float] = {}  # until when
        self._present: set[Endpoint] = set()

    def look(self) -> int:
        """Ask the tracker who is there; give how many boards that are.

        Raises:
            BoardUnreachableError: The tracker does not answer.
        """
        entries, _ = registered(self._endpoint)
        now = {Endpoint(host, port) for _, host, port in entries}
        with self._lock:
            left, self._present = self._present - now, now
            for board in left:  # it may come back as another machine
                self._machines.pop(board, None)
                self._refused.pop(board, None)
        for board in sorted(left, key=str):
            self._tell(BoardLeft(str(board), "it is not at the tracker any more"))
        return len(now)

    def welcome(self, board: Endpoint) -> bool:
        """Whether to measure on a board; one that nobody met yet is welcome."""
        with self._lock:
            resting = time.monotonic() < self._resting.get(board, 0.0)
            return board not in self._refused and not resting

    def hopes(self) -> bool:
        """Whether any board at the tracker is welcome."""
        with self._lock:
            present = list(self._present)
        return any(self.welcome(board) for board in present)

    def rest(self, board: Endpoint, seconds: float, reason: str) -> None:
        """Leave a board alone that is at the tracker, but that nothing gets through to."""
        with self._lock:
            self._resting[board] = time.monotonic() + seconds
            self._machines.pop(board, None)  # after that it is met anew
        self._tell(BoardLeft(str(board), f"left alone for {seconds:g} s: {reason}"))

    def machine_of(self, board: Endpoint) -> Mapping[str, Any] | None:
        """The description of a board, if it was met."""
        with self._lock:
            return self._machines.get(board)

    def examined(self, board: Endpoint, found: BoardInfo | str | None) -> bool:
        """Take what a lane found out about a board.

        Args:
            board: Its address.
            found: What it is; or why it cannot run the target's code; None only asks.

        Returns:
            With None whether the board is known, else whether it is welcome.
        """
        if found is None:
            with self._lock:
                return board in self._machines
        if isinstance(found, str):
            return self._refuse(board, found.strip().splitlines()[-1])
        machine = board_machine(found)
        if machine["emulated"] != self._first["emulated"]:
            kind = "emulated" if machine["emulated"] else "real"
            return self._refuse(board, f"it is {kind}, and the first board is not")
        with self._lock:
            known = board in self._machines
            self._machines[board] = machine
        if not known:
            told = describe_machine(machine)
            self._tell(BoardJoined(str(board), told, difference(self._first, machine)))
        return True

    def _refuse(self, board: Endpoint, reason: str) -> bool:
        with self._lock:
            known = board in self._refused
            self._refused[board] = reason
        if not known:
            self._tell(BoardLeft(str(board), f"not used: {reason}"))
        return False


def difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say in what two boards differ that makes their times incomparable; empty if in nothing."""
    found = [
        f"{name} {other[name] or 'unknown'} instead of {first[name] or 'unknown'}"
        for name in ("core", "cores", "governor")
        if other.get(name) != first.get(name)
    ]
    mine, theirs = float(first.get("clock_mhz") or 0), float(other.get("clock_mhz") or 0)
    if abs(mine - theirs) > _CLOCK_TOLERANCE * max(mine, theirs):
        found.append(f"clock {theirs:.0f} instead of {mine:.0f} MHz")
    return ", ".join(found)
