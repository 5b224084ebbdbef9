# SPDX-License-Identifier: Apache-2.0
"""Files to a board, read back to see that they arrived as they are.

TVM's server writes what is uploaded without a look at whether that succeeds, so that of a file for
which there is no room the beginning stays, and whoever loads that crashes; and TCP's own sum, of 16
bits, lets some damage pass.
"""

from typing import Any

from tvmattend.device.endpoint import Endpoint
from tvmattend.errors import BoardFullError, BoardUnreachableError


def send(session: Any, place: Endpoint, content: bytes | bytearray, name: str) -> None:
    """Upload a file that a server keeps for the session, and see that it is there.

    Args:
        session: A session with the board.
        place: Names the board in errors.
        content: The file.
        name: What the server is to call it.

    Raises:
        BoardFullError: The board has kept only the beginning.
        BoardUnreachableError: It has something else.
    """
    session.upload(bytearray(content), name)
    kept = bytes(session.download(name))
    if kept == content:
        return
    if content.startswith(kept):
        raise BoardFullError(
            f"{place}: the board has kept {len(kept)} of the {len(content)} bytes of a file",
            "free some space there, where its server keeps temporary files",
        )
    raise BoardUnreachableError(
        f"{place}: a file arrived with other bytes than were sent",
        "is there something in between that changes what is sent?",
    )
