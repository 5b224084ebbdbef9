# SPDX-License-Identifier: Apache-2.0
"""A board as a bench: attempts in a process of its own, a deadline on this side, a verdict after.

TVM's client blocks in C++ for as long as the other side is silent, and crashes on some garbage. So
it lives in a worker process, which is killed at the deadline whatever it is doing. What is asked of
the board after that has a deadline too, and its seconds are counted (`BoardLostError.asked`).
"""

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvmattend.device.asking import BoardStatus, ask_board
from tvmattend.device.board import BoardInfo
from tvmattend.device.conditions import conditions_from, disturbance
from tvmattend.device.endpoint import Endpoint, request_board
from tvmattend.device.killable import KillableWorker
from tvmattend.device.serving import wire
from tvmattend.errors import BoardUnreachableError, NoFreeBoardError
from tvmattend.storage import storage_fault
from tvmattend.target import TargetSpec
from tvmattend.tuning import workers
from tvmattend.tuning.attempt import CONNECT, RUN, Job, attempt, read_notes
from tvmattend.tuning.bench import (
    CRASHED,
    Artifact,
    BoardLostError,
    BoardRefusedError,
    LinkBrokenError,
    Outcome,
    Repetition,
)
from tvmattend.tuning.record import one_line
from tvmattend.tuning.verdict import judge

# Reaching the board, uploading and starting a session come on top of a trial's own time.
CONNECT_SECONDS = 15.0
_START_SECONDS = 120.0
# A failure is believed when it shows twice in the same words, or at the latest by this look.
_LOOKS = 4
# After a broken session, the server may take a moment to see its end; and then, for one question.
_ACCOUNT_SECONDS = 4.0
_ASK_TIMES = 3
_ASK_PAUSE = 0.4
_ASK_SECONDS = 3.0
_GREET_SECONDS = 6.0
# Figures further apart than this are taken again; such that no processor reaches were garbled.
_AGREE = 10.0
_LEAST_SECONDS = 1e-9
_MOST_FLOPS = 1e13


@dataclass(frozen=True)
class Seat:
    """A board that is ours for one session: its address, and what the tracker gave for it."""

    board: Endpoint
    match_key: str = ""


class BoardBench:
    """Measures on the board of an endpoint, or on whichever board its tracker gives.

    Args:
        endpoint: A server, or a tracker with a key.
        repetition: How often to call a kernel, and the time limit.
        target: What the boards are meant to be.
        probe: Library of the probe kernel for the target.
        directory: For the notes of attempts.
        hygiene: Whether clock and temperature of the board mean anything.
        examined: Told of a board that was met for the first time, and whether it is welcome; None
            if the board is known.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        repetition: Repetition,
        target: TargetSpec,
        probe: Path,
        directory: Path,
        hygiene: bool = True,
        examined: "Callable[[Endpoint, BoardInfo | str | None], bool] | None" = None,
    ) -> None:
        self._endpoint = endpoint
        self._repetition = repetition
        self._target = target
        self._probe = probe
        self._directory = directory
        self._hygiene = hygiene
        self._examined = examined
        self._seat: Seat | None = None
        self._last = endpoint
        self._ours: Endpoint | None = None  # a board whose server is `tvmattend device`
        self._worker = KillableWorker()

    @property
    def name(self) -> str:
        """The address that was measured on last, or will be."""
        return str(self._last)

    @property
    def board(self) -> Endpoint:
        """The board that was measured on last, or will be."""
        return self._last

    def wake(self) -> None:
        """Start the worker process, if it is not there.

        Before a board is asked for: a tracker's match key is good for some seconds only, and
        importing TVM may take longer on a busy machine.
        """
        if not self._worker.is_alive():
            # A fault here is the attempt's to tell.
            with contextlib.suppress(ChildProcessError, TimeoutError, RuntimeError):
                self._worker.call(_START_SECONDS, workers.wake, ())

    def take_seat(self, timeout: float) -> None:
        """Get a board for the next attempt.

        Raises:
            BoardUnreachableError: The tracker does not answer.
            NoFreeBoardError: It has no board of that key, or none becomes free in time.
        """
        self.wake()
        if self._endpoint.key:
            host, port, match_key = request_board(self._endpoint, timeout)
            self._seat = Seat(Endpoint(host, port), match_key)
        else:
            self._seat = Seat(self._endpoint)
        self._last = self._seat.board

    def leave_seat(self) -> None:
        """Give the board back unused: a server offers itself again after any session."""
        seat, self._seat = self._seat, None
        if seat is not None and seat.match_key:
            _greets(seat.board, _GREET_SECONDS, seat.match_key)

    def run(self, artifact: Artifact, hot_too: bool = False) -> Outcome:
        """Time one kernel; a failure counts when it repeats (see `Bench.run`)."""
        seen: list[Outcome] = []
        while True:
            outcome = self._once(artifact, hot_too)
            if outcome.status != "run-error":
                return replace(outcome, sent=len(seen) + 1)
            words = one_line(outcome.error)
            known = any(one_line(earlier.error) == words for earlier in seen)
            seen.append(outcome)
            if known or len(seen) == _LOOKS:
                return replace(outcome, sent=len(seen))

    def answers(self, seconds: float) -> bool:
        """Whether the board that was used last can take another kernel."""
        end = time.monotonic() + seconds
        status = self._ask(min(seconds / 2, _ASK_SECONDS))
        if status is None or (not status.server and self._ours == self._last):
            return False
        if self._endpoint.key:  # busy is well: another lane may have it
            return True
        if status.server:
            return not status.busy
        # TVM's own server accepts connections also when its loop has died: a greeting tells.
        return _greets(self._last, end - time.monotonic())

    def _ask(self, seconds: float) -> BoardStatus | None:
        """The status of the board that was used last; notes whether its server is ours."""
        status = ask_board(self._last.host, self._last.port, seconds)
        if status is not None and status.server:
            self._ours = self._last
        return status

    def end(self) -> None:
        """Kill the worker process for good, from whatever thread."""
        self._worker.retire()

    def _once(self, artifact: Artifact, hot_too: bool) -> Outcome:
        if self._seat is None:
            try:
                self.take_seat(CONNECT_SECONDS)
            except (BoardUnreachableError, NoFreeBoardError) as error:  # another lane may have one
                raise BoardRefusedError(str(error)) from error
        seat, self._seat = self._seat, None
        assert seat is not None  # noqa: S101  (just taken)
        known = self._examined is None or self._examined(seat.board, None)
        job = self._job(artifact, seat, hot_too, known)
        limit = self._repetition.timeout + CONNECT_SECONDS
        begun = time.monotonic()
        try:
            result = self._worker.call(limit, attempt, (job,))
        except TimeoutError:
            result = {
                **read_notes(Path(job.progress)),
                "error": f"TimeoutError: no answer within {limit:g} s",
                "silent": True,
            }
        except ChildProcessError as died:
            cause = died.__cause__
            fault = storage_fault(cause) if isinstance(cause, OSError) else None
            if fault is not None:  # the process could not be started: too many open files
                raise fault from died
            result = {
                **read_notes(Path(job.progress)),
                "error": "ChildProcessError: TVM's RPC client crashed",
            }
        finally:
            Path(job.progress).unlink(missing_ok=True)
        over = time.monotonic()
        if "server" in result:
            self._ours = seat.board
        if result.get("full"):
            raise LinkBrokenError(result["unreached"], sent=False, full=True)
        if "unreached" in result:  # no session, or nothing arrived: it is not the kernel's fault
            status = self._ask(_ASK_SECONDS)
            if status is not None and status.server and not status.busy:
                raise LinkBrokenError(result["unreached"], sent=False)
            raise BoardLostError(result["unreached"], False, time.monotonic() - over, sent=False)
        return self._outcome(result, seat, artifact, over - begun)

    def _job(self, artifact: Artifact, seat: Seat, hot_too: bool, known: bool) -> Job:
        repetition = self._repetition
        return Job(
            board=seat.board,
            match_key=seat.match_key,
            session_timeout=repetition.timeout,
            library=artifact.path,
            arguments=tuple(info.as_json() for info in artifact.args_info),
            threads=self._target.num_cores,
            number=repetition.number,
            repeat=repetition.repeat,
            min_repeat_ms=repetition.min_repeat_ms,
            progress=str(self._directory / f"notes-{uuid.uuid4().hex}"),
            probe=str(self._probe),
            target=None if known else self._target,
            hygiene=self._hygiene,
            hot_too=hot_too,
        )

    def _outcome(
        self, result: Mapping[str, Any], seat: Seat, artifact: Artifact, elapsed: float
    ) -> Outcome:
        if self._examined is not None and ("unfit" in result or "info" in result):
            welcome = self._examined(seat.board, result.get("unfit") or result.get("info"))
            if not welcome:
                raise BoardRefusedError(str(seat.board))
        if "seconds" in result:
            return self._times(result, elapsed, artifact.flops)
        if "hot" in result:
            conditions = {"before": conditions_from(result["before"]).to_json()}
            return Outcome("ok", disturbed=str(result["hot"]), rest=True, conditions=conditions)
        return self._failure(result)

    def _times(self, result: Mapping[str, Any], elapsed: float, flops: float) -> Outcome:
        seconds = tuple(float(second) for second in result["seconds"])
        least = max(_LEAST_SECONDS, flops / _MOST_FLOPS)
        whole = sum(seconds) * self._repetition.number
        if not (all(least < second for second in seconds) and whole <= elapsed):
            # Also what a step of the board's clock gives: TVM's timer is the wall clock.
            raise LinkBrokenError(f"figures that cannot be: {seconds} in {elapsed:.3f} s")
        before, after = conditions_from(result["before"]), conditions_from(result["after"])
        conditions = {"before": before.to_json(), "after": after.to_json()}
        disturbed = disturbance(before, after)
        apart = max(seconds) > _AGREE * min(seconds)
        return Outcome(
            "ok",
            seconds,
            conditions=conditions if any(conditions.values()) else {},
            disturbed=disturbed or ("the figures do not agree" if apart else ""),
            rest=bool(disturbed),
        )

    def _failure(self, result: Mapping[str, Any]) -> Outcome:
        error = str(result.get("error", "nothing came back"))
        over = time.monotonic()
        status = self._account(result) if not result.get("alive") else None
        verdict = judge(result, status)
        if verdict == "timeout":
            limit = self._repetition.timeout
            return Outcome("timeout", error=f"measuring took more than {limit:g} s")
        if status is not None and not status.server:  # silent, garbled, or TVM's own server
            known = self._ours == self._last
            verdict = verdict if not known and self.answers(_GREET_SECONDS) else "board"
        if verdict == "board":
            phase = result.get("phase", CONNECT)
            asked = time.monotonic() - over
            raise BoardLostError(error, phase == RUN, asked, sent=phase != CONNECT)
        if verdict == "link":
            raise LinkBrokenError(error, sent=result.get("phase", CONNECT) != CONNECT)
        return Outcome("run-error", error=f"{error}\n{CRASHED}" if verdict == "crash" else error)

    def _account(self, result: Mapping[str, Any]) -> BoardStatus | None:
        """The server's status once it knows how our session ended, or as good as it gets."""
        status = None
        end = time.monotonic() + _ACCOUNT_SECONDS
        for _ in range(_ASK_TIMES):
            left = end - time.monotonic()
            if left <= 0:  # silence
                break
            answer = self._ask(min(left, _ASK_SECONDS))
            if answer is not None and (answer.server or status is None):
                status = answer  # one that was garbled does not replace one that was not
            if status is not None and status.server:
                mine = status.server == result.get("server")
                if not mine or result["session"] in status.ended:
                    return status
            time.sleep(_ASK_PAUSE)
        return status


def _greets(board: Endpoint, seconds: float, match_key: str = "") -> bool:
    """Whether a server begins a session, which ends with the connection."""
    try:
        with socket.create_connection((board.host, board.port), max(seconds, 0.1)) as connection:
            wire.greet_server(connection, match_key)
    except (OSError, wire.ProtocolError):
        return False
    return True
