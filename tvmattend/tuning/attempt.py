# SPDX-License-Identifier: Apache-2.0
"""One attempt to measure one kernel on a board: what runs inside a lane's worker process.

Everything comes back as plain data, faults too. How far it got is in a file, because a process
that was killed, or that TVM's client crashed, tells nothing any more.
"""

import contextlib
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmattend.device.board import examine, server_says
from tvmattend.device.conditions import conditions_from
from tvmattend.device.endpoint import Endpoint, close_session, open_session
from tvmattend.device.probe_kernel import ProbeModule
from tvmattend.device.sending import send
from tvmattend.device.serving.conditions import read_conditions
from tvmattend.device.serving.wire import CONDITIONS_FUNCTION, SESSION_FUNCTION
from tvmattend.errors import (
    BoardFullError,
    BoardMismatchError,
    BoardUnreachableError,
    StorageError,
    TvmattendError,
)
from tvmattend.target import TargetSpec
from tvmattend.tuning import workers

# How far an attempt got. Only what happens in `RUN` may be the kernel's fault.
CONNECT, PREPARE, RUN, FINISH = "connect", "prepare", "run", "finish"


@dataclass(frozen=True)
class Job:
    """What to measure, and where.

    Attributes:
        board: The server.
        match_key: What the tracker gave for it; empty without one.
        session_timeout: Seconds after which the server ends the session.
        library: Path of the kernel.
        arguments: JSON of its `ArgInfo`s.
        threads: Threads that it runs with.
        number: Calls in one figure, at least.
        repeat: Figures.
        min_repeat_ms: Milliseconds that a figure takes at least.
        progress: File to note the phase in.
        probe: Library that reads files on a board whose server is TVM's own.
        target: What the board must be; None if that is known by now.
        hygiene: Whether the board's clock and temperature mean anything (not under an emulator).
        hot_too: Whether to measure on a board that is throttled already.
    """

    board: Endpoint
    match_key: str
    session_timeout: float
    library: str
    arguments: tuple[Any, ...]
    threads: int
    number: int
    repeat: int
    min_repeat_ms: int
    progress: str
    probe: str
    target: TargetSpec | None = None
    hygiene: bool = True
    hot_too: bool = False


def attempt(job: Job) -> dict[str, Any]:
    """Measure one kernel in a session of its own.

    Returns:
        `phase`, the session's `server` and `session` where the server tells them, and either
        `seconds` with the conditions `before` and `after`; or `hot`, a throttled board that
        nothing was run on; or `error` with `alive`, whether the session survived it; or `unfit`,
        a board that cannot run code for the target; or `unreached`, why there is no session, or
        what was sent did not arrive, and then whether the board is `full`. `info` describes a
        board that was examined.
    """
    note = _Notes(Path(job.progress))
    note(phase=CONNECT)
    try:
        session = open_session(job.board, job.match_key, session_timeout=job.session_timeout)
    except TvmattendError as error:
        return {"unreached": f"{type(error).__name__}: {error}", **note.known}
    try:
        return {**_measure(job, session, note), **note.known}
    except (BoardFullError, BoardUnreachableError) as error:
        # Of `send` and of `examine`: the kernel had no trial.
        full = isinstance(error, BoardFullError)
        return {"unreached": str(error), "full": full, **note.known}
    except StorageError:
        raise
    except BoardMismatchError as error:
        return {"unfit": str(error), **note.known}
    except Exception as error:  # noqa: BLE001  (whatever TVM raises is the result)
        del error
        text = traceback.format_exc()
        return {"error": text, "alive": _alive(session), **note.known}
    finally:
        close_session(session)


def _measure(job: Job, session: Any, note: "_Notes") -> dict[str, Any]:
    note(phase=PREPARE, **_session_of(session))
    found: dict[str, Any] = {}
    if job.target is not None:
        content = bytearray(Path(job.probe).read_bytes())
        found["info"] = examine(session, content, job.board, job.target)
    conditions = _conditions_reader(job, session)
    before = conditions()
    if conditions_from(before).throttled and not job.hot_too:
        return {**found, "hot": conditions_from(before).throttled, "before": before}
    kernel = _upload(session, job)
    device = session.cpu()
    (arguments,) = workers.allocate_remote(session, device, job.arguments, 1, job.threads)
    evaluate = kernel.time_evaluator("main", device, job.number, 1, min_repeat_ms=job.min_repeat_ms)
    note(phase=RUN)
    # A call a figure: one that comes back garbled disagrees with the others.
    seconds = [float(evaluate(*arguments).mean) for _ in range(job.repeat)]
    note(phase=FINISH)
    after = conditions()
    return {**found, "seconds": seconds, "before": before, "after": after}


def _upload(session: Any, job: Job) -> Any:
    """Send the kernel and load it."""
    library = Path(job.library)
    send(session, job.board, library.read_bytes(), library.name)
    module = session.load_module(library.name)
    session.remove(library.name)  # the loaded code stays; the board's disk is free again
    return module


def _conditions_reader(job: Job, session: Any) -> Callable[[], dict[str, Any]]:
    """How to read the board's conditions: by a server of ours, or by a kernel on TVM's."""
    if _has(session, CONDITIONS_FUNCTION):
        return lambda: server_says(session, CONDITIONS_FUNCTION)
    if not job.hygiene:
        return dict
    name = f"conditions-{Path(job.library).name}"
    send(session, job.board, Path(job.probe).read_bytes(), name)
    probe = ProbeModule(session.load_module(name), session.cpu())
    return lambda: read_conditions(probe.read)


def _session_of(session: Any) -> dict[str, Any]:
    """`server` and `session`, as a server of ours tells them, and nothing else; else nothing."""
    told = server_says(session, SESSION_FUNCTION)
    server, number = told.get("server"), told.get("session")
    known = isinstance(server, str) and type(number) is int
    return {"server": server, "session": number} if known else {}


def _has(session: Any, function: str) -> bool:
    try:
        session.get_function(function)
    except AttributeError:  # how TVM says that there is no such function
        return False
    return True


def _alive(session: Any) -> bool:
    """Whether the session still answers: then the fault was not the connection's."""
    try:
        session.get_function("runtime.config_threadpool")
    except Exception:  # noqa: BLE001  (any fault is the answer)
        return False
    return True


class _Notes:
    """The phase, and whose session it is, in a file."""

    def __init__(self, path: Path) -> None:
        self.known: dict[str, Any] = {}
        self._path = path

    def __call__(self, **facts: Any) -> None:
        self.known.update(facts)
        try:
            self._path.write_text(json.dumps(self.known), encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"the notes of a trial could not be written to `{self._path}`: {error.strerror}",
                "free some space there, or set TMPDIR; earlier records are kept",
            ) from error


def read_notes(path: Path) -> Mapping[str, Any]:
    """What an attempt left in its file; nothing if it did not get that far."""
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    return {}
