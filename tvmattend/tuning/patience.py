# SPDX-License-Identifier: Apache-2.0
"""How often something is tried again, how long a board is waited for, and when a kernel is blamed.

Everything is bounded: a broken connection by a number of attempts, a board that is away or full, or
that no attempt gets through to, by a time that the user gave, a hot board by a number of rests. A
kernel that no session was begun for had no trial: it is tried when the board is there.

A kernel that was running when its board went away goes into quarantine at once, before the board is
waited for (`Outcome.away`): the record is on the disk whatever the user, or the board, does next.
It may have been the network all the same; but a point of the design space is cheap, and a board is
not.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tvmattend.tuning.bench import Artifact, Bench, BoardLostError, LinkBrokenError, Outcome
from tvmattend.tuning.events import BoardBack, BoardGone, BoardHot, Observer, Repeated
from tvmattend.tuning.record import one_line

# Begins the error of a trial during which the board went away: it may not be the kernel's fault.
BOARD_LOST = "board lost"
# Begins that of a kernel that was running then.
TOOK_IT_DOWN = "the board went away while it ran"

# Seconds before each new attempt after a broken connection, and of each rest of a hot board.
LINK_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
RESTS = (5.0, 15.0, 30.0)
_LONGEST_WAIT = 16.0
# The last look at a board that was silent until then takes as long.
_LAST_LOOK = 1.0


def back_off(seconds: float) -> tuple[float, ...]:
    """Waits of 1, 2, 4, 8, 16, 16, ... seconds that make up so many in all."""
    waits: list[float] = []
    wait = 1.0
    while sum(waits) < seconds:
        waits.append(min(wait, seconds - sum(waits)))
        wait = min(2 * wait, _LONGEST_WAIT)
    return tuple(waits)


class BoardAwayError(Exception):
    """The board stayed away, or full, for as long as it is waited for.

    Args:
        reason: How it went.
        sent: Whether the kernel may have been sent; else it had no trial, and there is no record.
        full: Whether it is there, and its disk is full.
    """

    def __init__(self, reason: str, sent: bool = True, full: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.full = full


@dataclass(frozen=True)
class Patience:
    """The bounds, and how to wait.

    Attributes:
        observer: Told of every wait.
        waits: Seconds to wait for a lost board, before each attempt to find it.
        link_waits: Seconds before each new attempt after a broken connection.
        rests: Seconds that a throttled board rests, before each new attempt.
        sleep: Waits.
        clock: Tells seconds; a silent board takes its time for each attempt, too.
    """

    observer: Observer
    waits: Sequence[float] = field(default_factory=lambda: back_off(31.0))
    link_waits: Sequence[float] = LINK_WAITS
    rests: Sequence[float] = RESTS
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def measure(self, bench: Bench, artifact: Artifact) -> Outcome:
        """Measure a kernel, again after what passes.

        Raises:
            BoardAwayError: The board did not come back, or no session was ever begun there.
        """
        sent = breaks = rests = 0
        arrived = full = False
        broke = math.inf  # when the connection to a board that answers began to break
        failing = math.inf  # when anything began to
        while True:
            sent += 1
            try:
                outcome = bench.run(artifact, rests >= len(self.rests))
            except BoardLostError as lost:
                reason = str(lost)
                arrived = arrived or lost.sent
                failing = min(failing, self.clock())
                if lost.during_kernel:
                    error = f"{TOOK_IT_DOWN}: {one_line(reason)}"
                    return Outcome(
                        "run-error", error=error, quarantined=True, sent=sent, away=lost.asked
                    )
                if not self.wait_for(bench, reason, lost.asked):
                    raise BoardAwayError(reason, arrived) from lost
                full = False
                breaks += 1
                broke = self.clock()
            except LinkBrokenError as broken:
                reason = str(broken)
                arrived, full = arrived or broken.sent, broken.full
                breaks += 1
                broke = min(broke, self.clock())
                failing = min(failing, broke)
                # Sessions that fall silent one after another take long to break.
                if self.clock() - broke >= sum(self.waits):
                    raise BoardAwayError(reason, arrived, full) from broken
            else:
                sent += outcome.sent - 1
                arrived = arrived or bool(outcome.run_secs)
                if not outcome.disturbed or rests >= len(self.rests):
                    return replace(outcome, sent=sent)
                self._rest(bench, outcome, rests)
                rests += 1
                continue
            if breaks > len(self.link_waits):
                if arrived:
                    error = f"{BOARD_LOST}: {one_line(reason)}"
                    return Outcome("run-error", error=error, sent=sent)
                if self.clock() - failing >= sum(self.waits):
                    raise BoardAwayError(reason, arrived, full)
            wait = self.link_waits[min(breaks, len(self.link_waits)) - 1]
            self.observer(Repeated(bench.name, one_line(reason), wait))
            self.sleep(wait)

    def wait_for(self, bench: Bench, reason: str, asked: float = 0.0) -> bool:
        """Wait until the board answers, give whether it did.

        No longer than all waits together, and a second for the last look.

        Args:
            bench: Asks the board, which may take its time not to answer.
            reason: How it showed that the board is away.
            asked: Seconds for which it has been away.
        """
        end = self.clock() + sum(self.waits) - asked
        for attempt, pause in enumerate(self.waits, start=1):
            wait = max(0.0, min(pause, end - self.clock()))
            if attempt > 1 and not wait:
                return False
            line = one_line(reason)
            self.observer(BoardGone(wait, attempt, len(self.waits), line, bench.name))
            self.sleep(wait)
            if bench.answers(max(_LAST_LOOK, end - self.clock())):
                self.observer(BoardBack(bench.name))
                return True
        return False

    def _rest(self, bench: Bench, outcome: Outcome, rests: int) -> None:
        wait = self.rests[rests] if outcome.rest else 0.0
        self.observer(BoardHot(bench.name, outcome.disturbed, wait))
        if wait:
            self.sleep(wait)
