# SPDX-License-Identifier: Apache-2.0
"""Who does the trials of a run: this machine, a model of a core, a board, or a fleet."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvmattend.device.endpoint import Endpoint
from tvmattend.target import TargetSpec
from tvmattend.tuning.events import Observer, TuneOptions
from tvmattend.tuning.record import Origin

if TYPE_CHECKING:
    from tvmattend.tuning.crew import Crew
    from tvmattend.tuning.estimated import Model

# After a session's limit, for the server to end it.
_SERVER_SECONDS = 10.0


@contextmanager
def hire(
    target: TargetSpec,
    options: TuneOptions,
    endpoint: Endpoint | None,
    origin: Origin,
    machine: Mapping[str, Any],
    cross_compiler: str | None,
    model: "Model | None",
    observer: Observer,
) -> Iterator["Crew"]:
    """Give a crew; its processes end with the context.

    Args:
        target: What to build for.
        options: How to measure, and how long to wait.
        endpoint: The board, or the tracker with its key; None measures or estimates here.
        origin: What the times will be worth.
        machine: Description of the machine, or of the board that was met first.
        cross_compiler: Linker to use instead of Zig.
        model: Estimates in place of a board.
        observer: Told of what the boards do.
    """
    from tvmattend.tuning.crew import Alone
    from tvmattend.tuning.patience import Patience, back_off

    # Not before the server itself has given up on a session whose client it cannot see any more.
    wait = max(options.board_wait, options.timeout + _SERVER_SECONDS)
    patience = Patience(observer, back_off(wait))
    if model is not None:
        from tvmattend.tuning.estimated import Estimators

        with Estimators(model, target, options.timeout, machine, cross_compiler) as crew:
            yield crew
        return
    from tvmattend.tuning.bench import Repetition
    from tvmattend.tuning.measure import KernelMeasurer

    repetition = Repetition(options.number, options.repeat, options.min_repeat_ms, options.timeout)
    measuring = KernelMeasurer(target, repetition, endpoint, origin, machine, cross_compiler)
    with measuring as measurer:
        if endpoint is None:
            yield Alone(measurer, patience)
            return
        from tvmattend.tuning.fleet import Fleet

        with Fleet(measurer, endpoint, patience, observer, wait) as fleet:
            yield fleet
