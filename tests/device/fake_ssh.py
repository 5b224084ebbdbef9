# SPDX-License-Identifier: Apache-2.0
"""An `ssh` that forwards on this machine, or fails as OpenSSH does: `$FAKE_SSH` says which.

It notes its process id and its arguments in `$FAKE_SSH_LOG`, one JSON list a start.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

SAYS = {
    "denied": "pi@pi4: Permission denied (publickey).",
    "unknown": "Host key verification failed.",
    "changed": "@ REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
    "unresolved": "ssh: Could not resolve hostname pi4: Name or service not known",
    "refused": "ssh: connect to host pi4 port 22: Connection refused",
    "silent": "ssh: connect to host pi4 port 22: Connection timed out",
    "strange": "kex_exchange_identification: read: Connection reset by peer",
    "mute": "",
}


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def forward(near: socket.socket, far: tuple[str, int], mode: str) -> None:
    reason = "administratively prohibited"
    if mode != "prohibited":
        try:
            remote = socket.create_connection(far)
        except OSError:
            reason = "connect failed"
        else:
            for pair in ((near, remote), (remote, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()
            return
    say(f"channel 2: open failed: {reason}: Connection refused")
    near.close()


def main() -> None:
    mode, log = os.environ.get("FAKE_SSH", "forwards"), Path(os.environ["FAKE_SSH_LOG"])
    first = not log.exists()
    with log.open("a") as stream:
        stream.write(json.dumps([os.getpid(), *sys.argv[1:]]) + "\n")
    if mode == "hangs":
        time.sleep(600)
    if mode in SAYS:
        say(SAYS[mode])
        sys.exit(255)
    words = sys.argv[sys.argv.index("-L") + 1].split(":")
    if mode == "taken" and first:
        say(f"bind [{words[0]}]:{words[1]}: Address already in use")
        sys.exit(255)
    with socket.create_server((words[0], int(words[1]))) as listener:
        while True:
            near, _ = listener.accept()
            forward(near, (words[2], int(words[3])), mode)


main()
