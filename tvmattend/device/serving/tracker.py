# SPDX-License-Identifier: Apache-2.0
"""A board's entry at a TVM RPC tracker."""

import contextlib
import random
import socket
import sys
import time
from typing import Any

from .wire import (
    TRACKER_PENDING,
    TRACKER_PUT,
    TRACKER_SUCCESS,
    TRACKER_UPDATE_INFO,
    ProtocolError,
    ask_tracker,
    greet_tracker,
)

_TRACKER_SECONDS = 10.0
# A match key that a client took and did not use is replaced after this time (as TVM's server does).
_UNUSED_KEY_SECONDS = 6.0


class Registration:
    """This server's entry at an RPC tracker.

    Args:
        tracker: Host and port of the tracker.
        key: What clients ask for.
        address: Host and port to give to clients; host None means the one the tracker sees.
    """

    def __init__(self, tracker: tuple[str, int], key: str, address: tuple[str | None, int]) -> None:
        self.key = key
        self.match_key = ""
        self._tracker = tracker
        self._address = address
        self._connection: socket.socket | None = None
        self._seen_pending = 0.0

    def open(self) -> None:
        """Register, and offer the board once.

        Raises:
            OSError: The tracker cannot be reached.
            ProtocolError: What answers is no tracker.
        """
        self._connection = socket.create_connection(self._tracker, timeout=_TRACKER_SECONDS)
        try:
            greet_tracker(self._connection)
            self._ask([TRACKER_UPDATE_INFO, {"key": f"server:{self.key}", "addr": self._address}])
            self.offer()
        except (OSError, ProtocolError):
            self._connection.close()
            self._connection = None
            raise

    def offer(self) -> None:
        """Put the board into the tracker's queue under a fresh match key."""
        if self._connection is None:
            return
        # Guards against stale clients, not against attackers: as TVM's own server does.
        self.match_key = f"{self.key}:{random.random()}"  # noqa: S311
        host, port = self._address
        self._ask([TRACKER_PUT, self.key, [port, self.match_key], host])
        self._seen_pending = time.monotonic()

    def keep(self) -> None:
        """Renew an offer that a client took and did not use; come back to a tracker that is new."""
        if self._connection is None:
            with contextlib.suppress(OSError, ProtocolError):
                self.open()
                print(f"registered again as `{self.key}`", file=sys.stderr, flush=True)  # noqa: T201
            return
        try:
            if self.match_key in _offers(self._connection):
                self._seen_pending = time.monotonic()
            elif time.monotonic() - self._seen_pending > _UNUSED_KEY_SECONDS:
                self.offer()
        except (OSError, ProtocolError) as error:
            self.lost(error)

    def lost(self, error: Exception) -> None:
        """Forget a tracker that went away; `keep` tries again."""
        print(f"lost the tracker at {self}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __str__(self) -> str:
        return f"{self._tracker[0]}:{self._tracker[1]}"

    def _ask(self, request: list[Any]) -> None:
        assert self._connection is not None  # noqa: S101  (callers checked)
        if ask_tracker(self._connection, request) != TRACKER_SUCCESS:
            raise ProtocolError("the tracker refused the board")


def _offers(connection: socket.socket) -> list[Any]:
    """Match keys of ours that the tracker has and no client took."""
    found = ask_tracker(connection, [TRACKER_PENDING])
    if not isinstance(found, list):
        raise ProtocolError("its answer is no list of offers")
    return found
