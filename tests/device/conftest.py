# SPDX-License-Identifier: Apache-2.0
"""Ports that misbehave, and libraries that crash, never return or print too much."""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvmattend.target import TargetSpec

# Functions of a module in TVM's calling convention; none of them touches its arguments.
_MISBEHAVIOUR = """
int __tvm_ffi_crash(void *a, const void *b, int n, void *r) { *(volatile int *)8 = 1; return 0; }
int __tvm_ffi_forever(void *a, const void *b, int n, void *r) { for (;;) __asm__(""); }
long write(int file, const void *from, unsigned long count);
int __tvm_ffi_loud(void *a, const void *b, int n, void *r) {
  for (int i = 0; i < 20000; i++) write(1, "xxxxxxxxxx", 10);
  return 0;
}
"""


@pytest.fixture(scope="session")
def misbehaving(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TargetSpec], Path]:
    """A library for a target with the functions `crash`, `forever` and `loud`."""
    directory = tmp_path_factory.mktemp("misbehaving")
    source = directory / "misbehaving.c"
    source.write_text(_MISBEHAVIOUR)

    def build(target: TargetSpec) -> Path:
        output = directory / f"{target.arch}.so"
        if not output.exists():
            options = ["-target", f"{target.triple}.2.28", "-shared", "-fno-sanitize=all", "-w"]
            command = [sys.executable, "-m", "ziglang", "cc", *options, "-o", output, source]
            subprocess.run(command, check=True)
        return output

    return build


@contextlib.contextmanager
def port_that_says(data: bytes | None) -> Iterator[str]:
    """A port that accepts, says `data` (None: never accepts), and reads on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is closed at the end
                while True:
                    connection, _ = listener.accept()
                    connections.append(connection)
                    connection.sendall(data or b"")

        if data is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


@pytest.fixture
def silent_port() -> Iterator[str]:
    with port_that_says(None) as address:
        yield address


@pytest.fixture
def ssh_port() -> Iterator[str]:
    with port_that_says(b"SSH-2.0-OpenSSH_9.2p1\r\n") as address:
        yield address


@pytest.fixture
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"
