# SPDX-License-Identifier: Apache-2.0
"""Counts what happens in a run on its way to the observer."""

from dataclasses import dataclass, field

from tvmattend.tuning.events import (
    BoardBack,
    BoardGone,
    BoardHot,
    BoardJoined,
    BoardLeft,
    Event,
    Observer,
    Repeated,
    TrialDone,
)
from tvmattend.tuning.incidents import Incidents


@dataclass(frozen=True)
class Tally:
    """An observer that counts, and passes everything on.

    Attributes:
        observer: Hears everything.
        incidents: The counts.
    """

    observer: Observer
    incidents: Incidents = field(default_factory=Incidents)

    def __call__(self, event: Event) -> None:
        """Count an event; those that are part of every run count for nothing."""
        match event:
            case BoardGone(attempt=1):
                self.incidents.lost += 1
            case BoardBack():
                self.incidents.back += 1
            case Repeated():
                self.incidents.broken += 1
            case BoardHot():
                self.incidents.disturbed[event.reason] += 1
            case TrialDone():
                self.incidents.timeouts += event.record.status == "timeout"
                self.incidents.quarantined += event.record.quarantined
            case BoardJoined():
                self.incidents.boards[event.board] = event.machine
                self.incidents.left.pop(event.board, None)
                if event.difference:
                    self.incidents.odd[event.board] = event.difference
            case BoardLeft():
                self.incidents.left[event.board] = event.reason
            case _:
                pass
        self.observer(event)
