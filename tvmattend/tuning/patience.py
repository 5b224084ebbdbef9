# SPDX-License-Identifier: Apache-2.0
"""How often something is tried again, how long a board is waited for, and when a kernel is blamed.

Everything is bounded: a broken connection by a number of attempts, a board that is away by a time
that the user gave, a hot board by a number of rests. A kernel that was running twice when its board
went away goes into quarantine.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tvmattend.tuning.bench import Artifact, Bench, BoardLostError, LinkBrokenError, Outcome
from tvmattend.tuning.events import BoardBack, BoardGone, BoardHot, Observer, Repeated
from tvmattend.tuning.record import one_line

# Begins the error of a trial during which the board went away: it may not be the kernel's fault.
BOARD_LOST = "board lost"

# Seconds before each new attempt after a broken connection, and of each rest of a hot board.
LINK_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
RESTS = (5.0, 15.0, 30.0)
# So often a kernel may have been running when its board went away.
_STRIKES = 2
_LONGEST_WAIT = 16.0


def back_off(seconds: float) -> tuple[float, ...]:
    """Waits of 1, 2, 4, 8, 16, 16, ... seconds that make up so many in all."""
    waits: list[float] = []
    wait = 1.0
    while sum(waits) < seconds:
        waits.append(min(wait, seconds - sum(waits)))
        wait = min(2 * wait, _LONGEST_WAIT)
    return tuple(waits)


class BoardAwayError(Exception):
    """The board stayed away for as long as it is waited for; the text says how it went."""


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
            BoardAwayError: The board did not come back.
        """
        sent = strikes = breaks = rests = 0
        while True:
            sent += 1
            try:
                outcome = bench.run(artifact, rests >= len(self.rests))
            except BoardLostError as lost:
                reason = str(lost)
                strikes += lost.during_kernel
                breaks += not lost.during_kernel
                if not self.wait_for(bench, reason):
                    raise BoardAwayError(reason) from lost
                if strikes >= _STRIKES:
                    # Twice the same kernel, and the board is back both times: it is the kernel.
                    error = f"the board's server stops at it: {reason}"
                    return Outcome("run-error", error=error, quarantined=True, sent=sent)
            except LinkBrokenError as broken:
                reason = str(broken)
                breaks += 1
            else:
                sent += outcome.sent - 1
                if not outcome.disturbed or rests >= len(self.rests):
                    return replace(outcome, sent=sent)
                self._rest(bench, outcome, rests)
                rests += 1
                continue
            if breaks > len(self.link_waits):
                return Outcome("run-error", error=f"{BOARD_LOST}: {one_line(reason)}", sent=sent)
            if breaks:
                wait = self.link_waits[breaks - 1]
                self.observer(Repeated(bench.name, one_line(reason), wait))
                self.sleep(wait)

    def wait_for(self, bench: Bench, reason: str) -> bool:
        """Wait until the board answers, no longer than all waits together; give whether it did.

        The attempt that is under way when that time is over is the last.
        """
        end = self.clock() + sum(self.waits)
        for attempt, wait in enumerate(self.waits, start=1):
            if attempt > 1 and self.clock() >= end:
                return False
            line = one_line(reason)
            self.observer(BoardGone(wait, attempt, len(self.waits), line, bench.name))
            self.sleep(wait)
            if bench.answers():
                self.observer(BoardBack(bench.name))
                return True
        return False

    def _rest(self, bench: Bench, outcome: Outcome, rests: int) -> None:
        wait = self.rests[rests] if outcome.rest else 0.0
        self.observer(BoardHot(bench.name, outcome.disturbed, wait))
        if wait:
            self.sleep(wait)
