# SPDX-License-Identifier: Apache-2.0
"""What a server says of itself without a session: who it is, whether it is busy, how it fares.

A client whose session broke asks how that ended, and learns whether its kernel died, its time was
over, or only the connection went. A server that was started anew is known by its name.
"""

import signal
import uuid
from collections.abc import Callable
from typing import Any

from .conditions import Read

# How sessions end. A process that died is "died of SIGSEGV"; FAILED had none.
CLOSED, FAILED, LEFT, LIMIT = "closed", "not begun", "client left", "limit"

_REMEMBERED = 64


class Status:
    """A server's account of itself.

    Args:
        facts: Of its machine; they do not change.
        conditions: Reads clock, temperature and so on, now.
    """

    def __init__(self, facts: dict[str, Any], conditions: Callable[[], dict[str, Any]]) -> None:
        self.server = uuid.uuid4().hex
        self.conditions = conditions
        self._facts = facts
        self._session = 0
        self._busy = False
        self._ended: dict[int, str] = {}

    def begin(self) -> int:
        """A session begins; give its number."""
        self._session += 1
        self._busy = True
        return self._session

    def end(self, how: str) -> None:
        """The session is over."""
        self._busy = False
        self._ended[self._session] = how
        self._ended.pop(self._session - _REMEMBERED, None)

    def session(self) -> dict[str, Any]:
        """What the client of a session notes, in order to ask for its end later."""
        return {"server": self.server, "session": self._session}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "server": self.server,
            "busy": self._busy,
            "session": self._session,
            "ended": {str(number): how for number, how in self._ended.items()},
            "board": self._facts,
            "conditions": self.conditions(),
        }


def ending(code: int) -> str:
    """How a process ended, by its code as `subprocess` has it: a signal's name, or that code.

    Signals of real time have a number only.
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def machine_facts(read: Read) -> dict[str, Any]:
    """The lines of /proc/cpuinfo that tell cores apart, each once, and the model's name."""
    lines = read("/proc/cpuinfo").splitlines()
    kinds = ("CPU part", "Model", "model name", "vendor_id")
    told = dict.fromkeys(line for line in lines if line.startswith(kinds))
    count = sum(line.startswith("processor") for line in lines)
    return {
        "cpuinfo": "\n".join(told),
        "core_count": count,
        "model": read("/proc/device-tree/model"),
    }
