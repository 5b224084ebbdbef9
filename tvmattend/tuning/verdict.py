# SPDX-License-Identifier: Apache-2.0
"""Whose fault it was that an attempt gave no times: the kernel's, the link's or the board's.

The client sees the same broken connection in all three cases. What tells them apart is the
server's own account of how the session ended (`device.serving.status`), which is asked for after.
"""

from collections.abc import Mapping
from typing import Any, Literal

from tvmattend.device.asking import BoardStatus
from tvmattend.device.board import SESSION_TIMEOUT
from tvmattend.device.serving.status import LIMIT
from tvmattend.tuning.attempt import FINISH, RUN

Verdict = Literal["kernel", "crash", "timeout", "link", "board"]


def judge(result: Mapping[str, Any], status: BoardStatus | None) -> Verdict:
    """Say who is to blame.

    Args:
        result: Of an attempt that failed, or its notes if its process died; `alive` says whether
            the session survived the error.
        status: The server's account afterwards; None if nothing answers there.

    Returns:
        `kernel`: it raised an error, or was refused. `crash`: it ended its session's process.
        `timeout`: the server ended it at its limit. `link`: the connection broke, the board is
        well. `board`: it is gone, or was started anew meanwhile.
    """
    if SESSION_TIMEOUT in str(result.get("error", "")):
        return "timeout" if result.get("phase") == RUN else "link"
    if result.get("alive"):
        return "kernel"
    if status is None:
        return "board"
    if "server" not in result:
        # TVM's own server tells nothing: a session that breaks in the kernel is a crash.
        broke = result.get("phase") == RUN and not result.get("silent")
        return "crash" if broke and not status.server else "link"
    if not status.server:  # a server of ours, whose answer was garbled; or the end of a tunnel
        return "link"
    if status.server != result["server"]:
        return "board"
    how = status.ended.get(result["session"], "")
    if how == LIMIT:
        # Only by hearsay: it may as well have waited for words that never arrived.
        return "link"
    return "crash" if how.startswith("died of") and result.get("phase") in {RUN, FINISH} else "link"
