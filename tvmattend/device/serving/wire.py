# SPDX-License-Identifier: Apache-2.0
"""The protocol of TVM's RPC servers and trackers, as far as a handshake goes (tvm/rpc/base.py)."""

import json
import math
import socket
import struct
import time
from typing import Any

RPC_MAGIC = 0xFF271
TRACKER_MAGIC = 0x2F271
RPC_SUCCESS = RPC_MAGIC
RPC_MISMATCH = RPC_MAGIC + 2

# What can be asked of a tracker; an answer starts with, or is, TRACKER_SUCCESS.
TRACKER_SUCCESS, TRACKER_PUT, TRACKER_REQUEST = 0, 3, 4
TRACKER_UPDATE_INFO, TRACKER_SUMMARY, TRACKER_PENDING = 5, 6, 7

# Asks a server of ours for its status, without a session. TVM's own hangs up on it.
ASK_MAGIC = 0x5F271

# Global functions by which a client learns, as JSON, what a server of ours knows: about its
# machine, about the session that it is asked in, and about clock and temperature right now.
BOARD_FUNCTION = "tvmattend.board"
SESSION_FUNCTION = "tvmattend.session"
CONDITIONS_FUNCTION = "tvmattend.conditions"

# Nobody waits longer for anything; poll(2) cannot beyond 24 days.
LONGEST_SECONDS = 7 * 86400.0

_MAX_KEY = 4096
_MAX_TRACKER_MESSAGE = 1 << 20


class ProtocolError(Exception):
    """A peer that does not speak the protocol, or stopped in the middle of it."""


class StrangerError(ProtocolError):
    """A peer that answers in another language."""


def receive(connection: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes within the socket's timeout, all of them together.

    Raises:
        ProtocolError: The peer closed the connection first.
        TimeoutError: It was too slow, or silent.
    """
    data = b""
    limit = connection.gettimeout()
    end = None if limit is None else time.monotonic() + limit
    while len(data) < count:
        if end is not None:
            connection.settimeout(max(1e-3, end - time.monotonic()))
        try:
            chunk = connection.recv(count - len(data))
        finally:
            connection.settimeout(limit)
        if not chunk:
            raise ProtocolError(f"the connection ended after {len(data)} of {count} bytes")
        data += chunk
    return data


def first_word(connection: socket.socket) -> int | None:
    """Look at the first int32 that a client sent, without taking it; None until it is there.

    Raises:
        ProtocolError: The client closed the connection.
        OSError: It vanished.
    """
    try:
        data = connection.recv(4, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    if not data:
        raise ProtocolError("the connection ended before the greeting")
    return int(struct.unpack("<i", data)[0]) if len(data) == 4 else None


def ask(connection: socket.socket) -> Any:
    """Ask a server of ours for its status.

    Raises:
        ProtocolError: It is none.
        OSError: It was silent for too long, or vanished.
    """
    connection.sendall(struct.pack("<i", ASK_MAGIC))
    return receive_json(connection)


def receive_int(connection: socket.socket) -> int:
    """Receive one little-endian int32."""
    return int(struct.unpack("<i", receive(connection, 4))[0])


def send_json(connection: socket.socket, value: Any) -> None:
    """Send a message of the tracker's protocol: a length, then JSON."""
    data = json.dumps(value).encode()
    connection.sendall(struct.pack("<i", len(data)) + data)


def receive_json(connection: socket.socket) -> Any:
    """Receive a message of the tracker's protocol.

    Raises:
        ProtocolError: It is not one.
    """
    size = receive_int(connection)
    if not 0 < size <= _MAX_TRACKER_MESSAGE:
        raise ProtocolError(f"a message of {size} bytes")
    try:
        return json.loads(receive(connection, size))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message that is not JSON: {error}") from error


def handshake(connection: socket.socket, match_key: str, server_key: str) -> float | None:
    """Greet a client and give the timeout of the session that it asks for, in seconds.

    Raises:
        ProtocolError: It is no TVM RPC client, or it came with another key, or with a timeout that
            is none.
        OSError: It was silent for too long, or vanished.
    """
    if receive_int(connection) != RPC_MAGIC:
        raise ProtocolError("not a TVM RPC client")
    length = receive_int(connection)
    if not 0 < length <= _MAX_KEY:
        raise ProtocolError(f"a key of {length} bytes")
    words = receive(connection, length).decode(errors="replace").split()
    if not words or words[0] != f"client:{match_key}":
        connection.sendall(struct.pack("<i", RPC_MISMATCH))
        raise ProtocolError(f"key {' '.join(words)!r} does not match")
    limit = _limit(words[1:])
    answer = f"server:{server_key}".encode()
    connection.sendall(struct.pack("<ii", RPC_SUCCESS, len(answer)) + answer)
    return limit


def _limit(options: list[str]) -> float | None:
    for word in options:
        if word.startswith("-timeout="):
            try:
                seconds = float(word.removeprefix("-timeout="))
            except ValueError:
                seconds = math.nan
            if not 0 < seconds < math.inf:
                raise ProtocolError(f"option {word!r}")
            return min(seconds, LONGEST_SECONDS)
    return None


def greet_server(connection: socket.socket, match_key: str = "") -> None:
    """Greet a server as a client does that wants a session; it ends with the connection.

    Args:
        connection: To the server.
        match_key: What a tracker gave for it.

    Raises:
        StrangerError: Something answers that is none.
        ProtocolError: The connection ended without an answer.
        OSError: It was silent for too long, or vanished.
    """
    key = f"client:{match_key}".encode()
    connection.sendall(struct.pack("<ii", RPC_MAGIC, len(key)) + key)
    if receive_int(connection) not in {RPC_SUCCESS, RPC_MISMATCH}:
        raise StrangerError("it is not a TVM RPC server")


def greet_tracker(connection: socket.socket) -> None:
    """Open the conversation with a tracker.

    Raises:
        ProtocolError: It is none.
        OSError: It was silent for too long, or vanished.
    """
    connection.sendall(struct.pack("<i", TRACKER_MAGIC))
    if receive_int(connection) != TRACKER_MAGIC:
        raise ProtocolError("it is not a TVM RPC tracker")


def ask_tracker(connection: socket.socket, request: list[Any]) -> Any:
    """Send one request and receive its answer."""
    send_json(connection, request)
    return receive_json(connection)
