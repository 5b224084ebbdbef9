# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy between a client and a board that cuts, delays, garbles and falls silent."""

import contextlib
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_CHUNK = 1 << 14


@dataclass(frozen=True)
class Fault:
    """What happens to one connection.

    Attributes:
        kind: `cut` closes it, `delay` holds everything back for `seconds`, `garbage` puts random
            bytes into the stream, `corrupt` changes bytes of it, `half-open` forwards nothing any
            more and stays open, `kill` calls `FaultProxy.kill`.
        after: Bytes in both directions before it happens.
        seconds: Of a delay.
    """

    kind: str
    after: int = 0
    seconds: float = 0.0


class FaultProxy:
    """Forwards to a port; a context manager.

    Args:
        port: Of the board, on the loopback address.
        plan: Gives the fault of the n-th connection, from 0; None for none.
        kill: What the fault `kill` does.
        seed: Of the garbage.
    """

    def __init__(
        self,
        port: int,
        plan: Callable[[int], Fault | None],
        kill: Callable[[], None] = lambda: None,
        seed: int = 0,
    ) -> None:
        self._target = port
        self._plan = plan
        self._kill = kill
        self._draw = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.happened: Counter[str] = Counter()
        self.connections = 0
        self.silent = threading.Event()  # then nothing is forwarded any more, nor closed
        self._heard: tuple[bytes, float] | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "FaultProxy":  # noqa: PYI034  (typing.Self is of 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.close()

    def fall_silent_after(self, words: bytes, seconds: float) -> None:
        """Do so a moment after something was said."""
        self._heard = words, seconds

    def _accept(self) -> None:
        self._listener.settimeout(0.1)
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            fault = self._plan(self.connections)
            self.connections += 1
            threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: Fault | None) -> None:
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._target), 5) as server,
        ):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._forward(client, server, fault)

    def _forward(self, client: socket.socket, server: socket.socket, fault: Fault | None) -> None:
        passed = 0
        other = {client: server, server: client}
        while not self._stop.is_set():
            if self.silent.is_set():
                self._stop.wait(3600)
                return
            for source in select.select([client, server], [], [], 0.1)[0]:
                data = source.recv(_CHUNK)
                if not data:
                    return
                if self._heard is not None and self._heard[0] in data:
                    threading.Timer(self._heard[1], self.silent.set).start()
                    self._heard = None
                if fault is not None and passed + len(data) > fault.after:
                    self.happened[fault.kind] += 1
                    data = self._spoil(fault, data, fault.after - passed)
                    fault = None
                    if data is None:
                        return
                passed += len(data)
                other[source].sendall(data)

    def _spoil(self, fault: Fault, data: bytes, place: int) -> bytes | None:
        """What is sent in place of `data`; None closes the connection."""
        place = max(0, place)
        noise = self._draw.randbytes(self._draw.randint(1, 64))
        if fault.kind == "cut":
            return None
        if fault.kind == "garbage":
            return data[:place] + noise + data[place:]
        if fault.kind == "corrupt":
            return data[:place] + noise[: len(data) - place] + data[place + len(noise) :]
        if fault.kind == "half-open":
            self._stop.wait(3600)
            return None
        if fault.kind == "kill":
            self._kill()
            return data
        time.sleep(fault.seconds)
        return data
