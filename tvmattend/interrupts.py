# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and `kill` end what they meet, also where what a handler raises goes astray.

Python runs a handler of a signal in whatever of Python is running: a callback that TVM's C++ calls,
which makes a RuntimeError, or "no match", of what it raises; a destructor, which loses it; somebody
else's `except:`.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def kept() -> Iterator[None]:
    """Raise at the end what the handler of a signal has raised within, whatever became of it.

    Handlers run as ever. In another thread than the main one none does, and this does nothing.

    Raises:
        BaseException: The first that a handler raised, mostly KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []
    ended = False

    def noting(handler: Any) -> Any:
        def note(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except BaseException as error:
                raised.append(error)
                if not ended:  # else it would keep the other handlers from being put back
                    raise

        return note

    before = {number: signal.getsignal(number) for number in _STOPPING}
    try:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, noting(handler))
        yield
    finally:
        ended = True
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        if raised:
            raise raised[0]
