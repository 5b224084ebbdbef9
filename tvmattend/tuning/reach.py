# SPDX-License-Identifier: Apache-2.0
"""The first look at a board, in a process that can be killed.

TVM's client keeps Python's lock while it drops an object of a board, so a board that falls silent
at that moment would stop every thread of this process, whatever time limits they keep.
"""

from tvmattend.device.board import BoardInfo, probe
from tvmattend.device.endpoint import Endpoint, check_reachable
from tvmattend.errors import BoardUnreachableError, TvmattendError
from tvmattend.target import TargetSpec

_START_SECONDS = 120.0
_PROBE_SECONDS = 60.0
# Reaching the tracker and the board, building the kernel.
_MORE_SECONDS = 40.0


def look_at(endpoint: Endpoint, target: TargetSpec, cross_compiler: str | None) -> BoardInfo:
    """Say what a board is; see `tvmattend.device.board.probe`, whose errors these are.

    Raises:
        BoardUnreachableError: Also if the board fell silent.
    """
    check_reachable(endpoint)  # before TVM is even imported
    from tvmattend.tuning import workers
    from tvmattend.tuning.killable import KillableWorker
    from tvmattend.tuning.measure import importable

    worker = KillableWorker()
    try:
        with importable():
            worker.call(_START_SECONDS, workers.wake, ())
            found = worker.call(
                _PROBE_SECONDS + _MORE_SECONDS, _look, (endpoint, target, cross_compiler)
            )
    except (TimeoutError, ChildProcessError) as error:
        raise BoardUnreachableError(
            f"{endpoint}: the board stopped answering during a probe ({error})",
            "restart the server on the board",
        ) from error
    finally:
        worker.kill()
    if isinstance(found, BoardInfo):
        return found
    kind, message, hint = found
    raise kind(message, hint)


def _look(
    endpoint: Endpoint, target: TargetSpec, cross_compiler: str | None
) -> BoardInfo | tuple[type[TvmattendError], str, str]:
    """Runs in the worker, which would give an error back without its hint."""
    try:
        return probe(endpoint, target, cross_compiler, _PROBE_SECONDS)
    except TvmattendError as error:
        return type(error), str(error), error.hint
