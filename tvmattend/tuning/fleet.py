# SPDX-License-Identifier: Apache-2.0
"""Boards at work in parallel, while this machine builds what they measure next.

One thread builds; a lane for each board takes a kernel that is built, gets a board and measures; a
scout watches who is at the tracker. A lane that waits for its board holds one kernel and nobody
else. What they have to tell goes through a queue to the run's own thread, which alone writes
records and talks to the observer.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tvmattend.device.endpoint import Endpoint
from tvmattend.errors import BoardUnreachableError, NoFreeBoardError
from tvmattend.tuning.bench import Artifact, BoardRefusedError, Candidate, Outcome
from tvmattend.tuning.board_bench import BoardBench
from tvmattend.tuning.crew import Finished, lost_outcome
from tvmattend.tuning.events import Event, Observer
from tvmattend.tuning.patience import BOARD_LOST, BoardAwayError, Patience
from tvmattend.tuning.record import Origin, one_line
from tvmattend.tuning.roster import Roster

# Kernels that are built before they are needed, for a lane: the search learns between.
_AHEAD_ALONE = 8
_AHEAD_PER_LANE = 2
_MOST_LANES = 64
_SCOUT_SECONDS = 2.0
_SEAT_SECONDS = 2.0
_IDLE_SECONDS = 0.5
_JOIN_SECONDS = 5.0


class Shop(Protocol):
    """What a fleet needs of this machine: `tvmattend.tuning.measure.KernelMeasurer`."""

    @property
    def origin(self) -> Origin:
        """What the boards' times are worth."""

    @property
    def machine(self) -> Mapping[str, Any]:
        """Description of the board that was met first."""

    def build(self, candidates: Sequence[Candidate]) -> list[Artifact | Outcome]:
        """Build a batch; a failure takes the place of its artifact."""

    def discard(self, artifact: Artifact) -> None:
        """Remove a kernel that was measured."""

    def open_bench(self, roster: Roster | None) -> BoardBench:
        """A bench for another board."""


class _StoppedError(Exception):
    """The run is over: ends a thread that waits for something."""


@dataclass(frozen=True)
class _Job:
    """A kernel on its way: built, or known not to build."""

    candidate: Candidate
    product: Artifact | Outcome
    build_secs: float


class Fleet:
    """Does trials on every free board of a key, or on one board.

    Args:
        shop: Builds, and opens benches.
        endpoint: The tracker and key, or a server.
        patience: How long boards are waited for; `observer` and `sleep` are replaced.
        observer: Told of what the lanes meet, in the caller's thread.
        board_wait: Seconds without any board of the key after which the run ends.
    """

    def __init__(
        self,
        shop: Shop,
        endpoint: Endpoint,
        patience: Patience,
        observer: Observer,
        board_wait: float,
    ) -> None:
        self.origin = shop.origin
        self.machine = shop.machine
        self._shop = shop
        self._endpoint = endpoint
        self._observer = observer
        self._board_wait = board_wait
        self._stop = threading.Event()
        self._told: queue.SimpleQueue[Finished | Event | BaseException] = queue.SimpleQueue()
        self._patience = replace(patience, observer=self._told.put, sleep=self._sleep)
        self._to_build: queue.SimpleQueue[Sequence[Candidate]] = queue.SimpleQueue()
        self._ready: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._roster = Roster(endpoint, shop.machine, self._told.put) if endpoint.key else None
        self._lanes: list[threading.Thread] = []
        self._benches: list[BoardBench] = []
        self._served = time.monotonic()  # when a board was last of use
        self._vacated = self._served  # when a lane first gave one up after that
        self._occupants = 0  # lanes that have one now, or are about to
        self._start(self._build, "builder")
        self._open_lane()
        if self._roster is not None:
            self._start(self._scout, "scout")

    @property
    def ahead(self) -> int:
        """With so many trials under way, or fewer, it wants more."""
        return max(_AHEAD_ALONE, _AHEAD_PER_LANE * len(self._benches))

    def submit(self, batch: Sequence[Candidate]) -> None:
        """Take candidates; they are built in this order."""
        self._to_build.put(batch)

    def next(self) -> Finished:
        """Wait for a trial to be over.

        Raises:
            NoFreeBoardError: There was no board of the key for too long.
            BoardAwayError: The only board went away and did not come back.
        """
        while True:
            try:
                told = self._told.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                self._check_boards()
                continue
            if isinstance(told, Finished):
                return told
            if isinstance(told, BaseException):
                raise told
            self._observer(told)

    def close(self) -> None:
        """Stop every thread and process of the lanes; the shop closes by itself."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        self._to_build.put(())
        for bench in self._benches:
            bench.end()
        deadline = time.monotonic() + _JOIN_SECONDS
        for lane in self._lanes:  # the builder ends when the shop kills its processes
            lane.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> "Fleet":  # noqa: PYI034  (Self came with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, action: Callable[[], None], name: str) -> threading.Thread:
        def run() -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001  (handed to the run's thread)
                if not self._stop.is_set():
                    self._told.put(error)

        thread = threading.Thread(target=run, daemon=True, name=f"tvmattend-{name}")
        thread.start()
        return thread

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _StoppedError

    def _build(self) -> None:
        while not self._stop.is_set():
            batch = self._to_build.get()
            if not batch or self._stop.is_set():
                return
            begun = time.monotonic()
            built = self._shop.build(batch)
            each = (time.monotonic() - begun) / len(batch)
            with self._changed:
                if not self._ready:  # nobody needed a board meanwhile
                    self._served = time.monotonic()
                pairs = zip(batch, built, strict=True)
                self._ready += [_Job(candidate, product, each) for candidate, product in pairs]
                self._changed.notify_all()

    def _open_lane(self) -> None:
        with self._changed:  # `close` ends every lane that there is, and there will be no other
            if self._stop.is_set():
                raise _StoppedError
            bench = self._shop.open_bench(self._roster)
            self._benches.append(bench)
            self._lanes.append(self._start(lambda: self._lane(bench), f"lane-{len(self._benches)}"))

    def _lane(self, bench: BoardBench) -> None:
        with self._occupied():
            bench.wake()
            self._served = time.monotonic()
        while not self._stop.is_set():
            with self._changed:
                while not self._ready and not self._stop.is_set():
                    self._changed.wait(_IDLE_SECONDS)
            if self._stop.is_set() or not self._seated(bench):
                continue
            with self._changed:
                job = self._ready.popleft() if self._ready else None
            if job is None:  # another lane was faster
                bench.leave_seat()
                continue
            with self._occupied():
                if not self._do(bench, job):
                    return

    @contextlib.contextmanager
    def _occupied(self) -> Iterator[None]:
        """While a lane has a board, or starts its process: the run is not stuck."""
        with self._changed:
            self._occupants += 1
        try:
            yield
        finally:
            with self._changed:
                if self._vacated <= self._served:
                    self._vacated = time.monotonic()
                self._occupants -= 1

    def _seated(self, bench: BoardBench) -> bool:
        """Get a board for the lane; without a free one the kernel stays for the other lanes."""
        try:
            bench.take_seat(_SEAT_SECONDS)
        except (BoardUnreachableError, NoFreeBoardError):
            self._sleep(_IDLE_SECONDS)
            return False
        if self._roster is not None and not self._roster.welcome(bench.board):
            bench.leave_seat()
            self._sleep(_SCOUT_SECONDS)
            return False
        return True

    def _do(self, bench: BoardBench, job: _Job) -> bool:
        """Do a trial; give whether there is any use in another."""
        begun = time.monotonic()
        fatal = ""
        if isinstance(job.product, Outcome):
            bench.leave_seat()
            outcome = job.product
        else:
            try:
                outcome = self._patience.measure(bench, job.product)
            except BoardRefusedError:
                with self._changed:
                    self._ready.appendleft(job)
                return True
            except BoardAwayError as away:
                outcome = lost_outcome(away)
                if self._roster is not None:
                    self._roster.rest(bench.board, self._board_wait, one_line(str(away)))
                elif not away.sent:
                    raise
                else:
                    fatal = one_line(str(away))
                if not away.sent:  # another board may have it
                    with self._changed:
                        self._ready.appendleft(job)
                    return True
            else:
                if outcome.away is None and not outcome.error.startswith(BOARD_LOST):
                    self._served = time.monotonic()
            self._shop.discard(job.product)
            if self._roster is not None and outcome.machine is None:
                outcome = replace(outcome, machine=self._roster.machine_of(bench.board))
        if self._stop.is_set():  # its worker was killed: it did not happen
            return False
        spent = job.build_secs + time.monotonic() - begun
        self._told.put(Finished(job.candidate, outcome, spent, fatal))
        if outcome.away is not None:
            self._await(bench, one_line(outcome.error), outcome.away)
        return not fatal

    def _await(self, bench: BoardBench, reason: str, away: float) -> None:
        """Wait for a board that went away in a kernel, of which there is a record by now.

        Raises:
            BoardAwayError: It stays away, and there is no other.
        """
        if self._patience.wait_for(bench, reason, away):
            return
        if self._roster is None:
            raise BoardAwayError(reason)
        self._roster.rest(bench.board, self._board_wait, reason)

    def _scout(self) -> None:
        assert self._roster is not None  # noqa: S101  (started for a tracker only)
        while not self._stop.is_set():
            # A tracker that is away for a moment changes nothing; boards register again.
            with contextlib.suppress(BoardUnreachableError):
                count = self._roster.look()
                while len(self._benches) < min(count, _MOST_LANES):
                    self._open_lane()
            self._sleep(_SCOUT_SECONDS)

    def _check_boards(self) -> None:
        """End a run that has had no board for as long as the user would wait.

        Lanes may all have waited for a board that fell silent: another, if there is one, is asked
        for from when the first of them gives up.
        """
        with self._changed:
            if self._roster is None or self._occupants or not self._ready:
                return
            since = max(self._served, self._vacated) if self._roster.hopes() else self._served
        if time.monotonic() - since < self._board_wait:
            return
        raise NoFreeBoardError(
            f"no board of {self._endpoint} could be had for {self._board_wait:g} s",
            "what was measured is recorded; start a board with `tvmattend device --tracker "
            "HOST:PORT --key NAME` and repeat the command to go on",
        )
