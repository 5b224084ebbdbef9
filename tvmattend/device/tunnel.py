# SPDX-License-Identifier: Apache-2.0
"""`--rpc ssh://USER@HOST`: a way to a server on a board's loopback, through the system's `ssh`.

`ssh` is started with an argument list and asks nothing (BatchMode): keys, jump hosts and names are
those of the user's own configuration. It forwards a free port of this machine's loopback, and ends
with this process, however that ends. A tunnel that breaks is built again, on the same port.

Other users of this machine can connect to that port as they can to the board's loopback if they
are on the board: on a machine that is shared with people you do not trust, use neither.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from tvmattend.device.endpoint import SERVER_PORT, Endpoint, parse_endpoint
from tvmattend.device.serving import wire
from tvmattend.errors import BoardUnreachableError, ToolMissingError, TvmattendError
from tvmattend.storage import storage_fault

_LOG = logging.getLogger(__name__)

_HERE = "127.0.0.1"
_CONNECT_SECONDS = 10  # for each address of the host
_DEADLINE = 30.0  # until the tunnel stands: connecting, and logging in
_GREETING_SECONDS = 10.0
_STOP_SECONDS = 3.0
_ATTEMPTS = 3  # another program may take the port that was free
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before a broken tunnel is built again; then the last

# Becomes `ssh`, which from then on gets SIGTERM when the thread that started it is gone, and so
# when this process is. Not `preexec_fn`, which is unsafe beside other threads.
_BECOME = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)
_OPTIONS = {
    "BatchMode": "yes",
    "ExitOnForwardFailure": "yes",
    "ConnectTimeout": str(_CONNECT_SECONDS),
    # A line that is dead is noticed within half a minute.
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    # Not through a connection that another ssh keeps: the tunnel would outlive us there.
    "ControlMaster": "no",
    "ControlPath": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
}

_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"(?::(?P<ssh>[0-9]{1,5}))?(?:/(?P<rpc>[0-9]{1,5})?)?"
)


@dataclass(frozen=True)
class SshAddress:
    """A board that is reached by SSH.

    Attributes:
        host: Name, address, or alias of the user's ssh configuration.
        user: Empty for what that configuration says.
        ssh_port: None likewise.
        rpc_port: Of the server on the board's loopback.
    """

    host: str
    user: str = ""
    ssh_port: int | None = None
    rpc_port: int = SERVER_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        ssh = f":{self.ssh_port}" if self.ssh_port is not None else ""
        return f"ssh://{user}{host}{ssh}" + (
            f"/{self.rpc_port}" if self.rpc_port != SERVER_PORT else ""
        )

    def by_hand(self) -> str:
        """The command that a person would log in with."""
        port = f"-p {self.ssh_port} " if self.ssh_port is not None else ""
        return f"ssh {port}{f'{self.user}@' if self.user else ''}{self.host}"


def parse_ssh(text: str) -> SshAddress:
    """Understand `ssh://[USER@]HOST[:SSH_PORT][/RPC_PORT]`.

    Raises:
        BoardUnreachableError: It is none. What `ssh` could take for an option is none either.
    """
    match = _ADDRESS.fullmatch(text.strip())
    ports = [int(match[name]) for name in ("ssh", "rpc") if match[name]] if match else [0]
    if match is None or not all(0 < port < 65536 for port in ports):
        raise BoardUnreachableError(
            f"`{text}` is not an address of a board",
            "write ssh://USER@HOST[:SSH_PORT][/RPC_PORT], e.g. ssh://pi@pi4",
        )
    return SshAddress(
        match["host"].strip("[]"),
        match["user"] or "",
        int(match["ssh"]) if match["ssh"] else None,
        int(match["rpc"]) if match["rpc"] else SERVER_PORT,
    )


@contextlib.contextmanager
def reached(text: str) -> Iterator[Endpoint]:
    """Understand what `--rpc` takes; for `ssh://` a tunnel stands as long as the context.

    Raises:
        BoardUnreachableError: It is no address; or there is no way there, or no server.
        ToolMissingError: There is no `ssh` on this machine.
    """
    if not text.strip().startswith("ssh://"):
        yield parse_endpoint(text)
        return
    with Tunnel(parse_ssh(text)) as tunnel:
        yield tunnel.endpoint


class Tunnel:
    """A forwarded port; a context manager, open inside.

    Args:
        address: Where to.
        deadline: Seconds for `ssh` to connect and log in.
    """

    def __init__(self, address: SshAddress, deadline: float = _DEADLINE) -> None:
        self._address = address
        self._deadline = deadline
        self._closing = threading.Event()
        self._ended = threading.Event()  # the first `ssh`, before the tunnel stood
        self._unstarted: OSError | None = None
        self._stands = False
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._said: IO[bytes] | None = None
        self._port = 0

    @property
    def endpoint(self) -> Endpoint:
        """The near end, by the name that the user gave."""
        return Endpoint(_HERE, self._port, name=str(self._address))

    def __enter__(self) -> "Tunnel":  # noqa: PYI034  (typing.Self is of 3.11)
        program = shutil.which("ssh")
        if program is None:
            raise ToolMissingError(
                f"{self._address}: there is no `ssh` on this machine",
                "apt-get install openssh-client, or forward the port yourself and give its address",
            )
        try:
            self._stand(program)
            self._greet()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End `ssh`; nothing happens if it ended."""
        self._closing.set()
        process = self._process
        if process is not None and process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)  # and what it started to get through
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
                    break
        if self._keeper is not None:
            self._keeper.join(_STOP_SECONDS)
        if self._said is not None:
            self._said.close()
            self._said = None

    def _stand(self, program: str) -> None:
        said = ""
        for _ in range(_ATTEMPTS):
            said = self._open(program)
            if not said:
                return
            if "Address already in use" not in said:
                break
            self.close()
        raise self._fault(said)

    def _open(self, program: str) -> str:
        """Start, and wait until the port accepts; give what `ssh` said if it did not come to it.

        Raises:
            StorageError: This machine has too many files open.
            BoardUnreachableError: It cannot start `ssh` for another reason.
        """
        self._closing, self._ended = threading.Event(), threading.Event()
        with socket.create_server((_HERE, 0)) as probe:
            self._port = int(probe.getsockname()[1])
        self._keeper = threading.Thread(
            target=self._keep, args=(program, self._closing), daemon=True, name="tvmattend-tunnel"
        )
        self._keeper.start()
        over = time.monotonic() + self._deadline
        while not self._ended.wait(0.05):
            with contextlib.suppress(OSError):
                socket.create_connection((_HERE, self._port), 1.0).close()
                self._stands = True
                return ""
            if time.monotonic() > over:
                return f"{self._words()}\nno tunnel within {self._deadline:g} s"
        if self._unstarted is not None:
            raise storage_fault(self._unstarted) or BoardUnreachableError(
                f"{self._address}: ssh cannot be started: {self._unstarted.strerror}",
                "is this machine out of memory, or of processes (`ulimit -u`)?",
            ) from self._unstarted
        return self._words() or "ssh ended without a word"

    def _keep(self, program: str, closing: threading.Event) -> None:
        """Run `ssh`, again and again once the tunnel stood; in a thread that lives as long."""
        for attempt in range(sys.maxsize):
            try:
                words = self._run(program, closing)
            except OSError as error:
                self._unstarted = error
                words = f"ssh cannot be started: {error.strerror or error}"
            if not self._stands:
                self._ended.set()
            if closing.is_set() or not self._stands:
                return
            _LOG.warning("%s: the tunnel broke: %s", self._address, words)
            if closing.wait(_WAITS[min(attempt, len(_WAITS) - 1)]):
                return

    def _run(self, program: str, closing: threading.Event) -> str:
        """Run `ssh` to its end; give what it said, in one line.

        Raises:
            OSError: This machine has no room for another file or process.
        """
        before, self._said = self._said, tempfile.TemporaryFile()  # noqa: SIM115  (see `close`)
        if before is not None:
            before.close()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), program,
             *self._arguments()],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C reaches us alone; we end it in order
        )  # fmt: skip
        if closing.is_set():
            self._process.terminate()
        code = self._process.wait()
        return " ".join(self._words().split()) or f"ended with {code}"

    def _arguments(self) -> list[str]:
        address = self._address
        words = ["-N", "-T"]
        for name, value in _OPTIONS.items():
            words += ["-o", f"{name}={value}"]
        words += ["-L", f"{_HERE}:{self._port}:{_HERE}:{address.rpc_port}"]
        words += ["-l", address.user] if address.user else []
        words += ["-p", str(address.ssh_port)] if address.ssh_port is not None else []
        return [*words, "--", address.host]

    def _words(self) -> str:
        """What `ssh` has written on stderr so far."""
        if self._said is None:
            return ""
        size = os.fstat(self._said.fileno()).st_size
        return os.pread(self._said.fileno(), size, 0).decode(errors="replace").strip()

    def _greet(self) -> None:
        """See whether a TVM RPC server is at the far end, which accepts whoever is there."""
        far = f"{_HERE}:{self._address.rpc_port}"
        try:
            with socket.create_connection((_HERE, self._port), _GREETING_SECONDS) as connection:
                wire.greet_server(connection)
        except TimeoutError:
            return  # busy with another client, perhaps; `connect` has a deadline and words for it
        except (OSError, wire.ProtocolError) as error:
            said = self._words()
            if "administratively prohibited" in said:
                raise BoardUnreachableError(
                    f"{self._address}: the board's SSH server forwards no ports",
                    "set `AllowTcpForwarding yes` in its sshd_config",
                ) from error
            if isinstance(error, wire.StrangerError):
                raise BoardUnreachableError(
                    f"{self._address}: what serves on the board's {far} is no TVM RPC server",
                    "give the server's own port behind the host: ssh://USER@HOST/PORT",
                ) from error
            raise BoardUnreachableError(
                f"{self._address}: the tunnel stands, but nothing serves on the board's {far}",
                f"on the board run `tvmattend device --port {self._address.rpc_port}`, or "
                f"`python -m tvm.exec.rpc_server --host {_HERE} --port {self._address.rpc_port}`",
            ) from error

    def _fault(self, said: str) -> TvmattendError:
        """Say what `ssh` said in our words, with what to do."""
        hand = f"`{self._address.by_hand()}`"
        for sign, message, hint in _SIGNS:
            if sign in said:
                return BoardUnreachableError(
                    f"{self._address}: {message}", hint.format(hand=hand, host=self._address.host)
                )
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return BoardUnreachableError(
            f"{self._address}: no tunnel: {lines[-1]}", f"see whether {hand} gets there"
        )


# What `ssh` writes, the first that fits; OpenSSH's words, which are not translated.
_SIGNS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the board's host key is not the one that is known",
        "if it was set up anew: `ssh-keygen -R {host}`, then {hand}; else who is in between?",
    ),
    (
        "Host key verification failed",
        "the board's host key is not known yet",
        "log in once by hand, {hand}, and compare the fingerprint",
    ),
    (
        "Permission denied",
        "the board refused the login",
        "no password is asked for here: {hand} must work without one (ssh-copy-id, ssh-add)",
    ),
    (
        "Could not resolve hostname",
        "the name does not resolve",
        "check the spelling, or give an IP address",
    ),
    ("Connection refused", "no SSH server accepts there", "is sshd running, and on that port?"),
    ("timed out", "no answer", "is the board on, and no firewall in between?"),
    ("No route to host", "no route to the host", "is the board on, and in this network?"),
    ("no tunnel within", "ssh did not log in in time", "see whether {hand} gets there"),
)
