# SPDX-License-Identifier: Apache-2.0
"""What happened in a run besides trials, counted: the summary that it ends with."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Incidents:
    """Counts of a run.

    Attributes:
        lost: How often a board went away.
        back: How often one came back.
        broken: How often a connection broke while the board was well.
        disturbed: How often figures were taken again, by reason.
        timeouts: Kernels that took too long to build or to measure.
        quarantined: Kernels that took a board down.
        boards: Boards of a fleet that were met, with what they are.
        odd: Of them those that differ from the first, and in what.
        left: Boards that went or were not used, and why.
    """

    lost: int = 0
    back: int = 0
    broken: int = 0
    disturbed: Counter[str] = field(default_factory=Counter)
    timeouts: int = 0
    quarantined: int = 0
    boards: dict[str, str] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> Mapping[str, Any]:
        """Plain data."""
        return {
            "boards_lost": self.lost,
            "boards_back": self.back,
            "connections_broken": self.broken,
            "measured_again": dict(self.disturbed),
            "timeouts": self.timeouts,
            "quarantined": self.quarantined,
            "boards": dict(self.boards),
            "boards_that_differ": dict(self.odd),
            "boards_left": dict(self.left),
        }

    def lines(self) -> list[str]:
        """For a person: what did not happen is not mentioned."""
        lines = []
        if self.boards:
            kinds = Counter(self.boards.values())
            told = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
            lines.append(f"boards: {told}")
        lines += [f"board {board} differs: {what}" for board, what in self.odd.items()]
        lines += [f"board {board} left: {why}" for board, why in self.left.items()]
        counted = (
            (self.lost, "a board went away", f", came back {_times(self.back)}"),
            (self.broken, "a connection broke and the trial was repeated", ""),
            (self.timeouts, "a kernel took too long", ""),
            (self.quarantined, "a board went away in a kernel", ", which is never sent again"),
        )
        lines += [f"{text} {_times(count)}{more}" for count, text, more in counted if count]
        lines += [
            f"figures were taken again {_times(count)}: {reason}"
            for reason, count in self.disturbed.items()
        ]
        return lines


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
