# SPDX-License-Identifier: Apache-2.0
"""From a request to a report: check, reach the board, lower the network, run the trials.

The order is the user's: what can be refused without torch, or without compiling, is refused first.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmattend.codegen.link import link_command
from tvmattend.device.board import probe
from tvmattend.device.endpoint import Endpoint
from tvmattend.errors import TargetError, TuningError, compiling
from tvmattend.frontend import ModelRequest
from tvmattend.storage import require_room, temporary_directory
from tvmattend.target import TargetSpec
from tvmattend.text import how_many
from tvmattend.tuning.chatter import chatter_to
from tvmattend.tuning.events import Note, Observer, Planned, Stage, TuneOptions, ignore
from tvmattend.tuning.hire import hire
from tvmattend.tuning.record import Origin, Record
from tvmattend.tuning.record_file import Fault, RecordFile, read_records, record_path
from tvmattend.tuning.records import RecordSet, find_records, own_records, records_directory
from tvmattend.tuning.report import TaskPlan, TunePlan, TuneReport
from tvmattend.tuning.tally import Tally

if TYPE_CHECKING:
    from tvmattend.transform import FusionReport
    from tvmattend.tuning.crew import Crew
    from tvmattend.tuning.estimated import Model

# Seconds a trial where no record says: building on two cores, then measuring.
_TRIAL_SECS: Mapping[Origin | None, float] = {
    "measured": 0.8,
    "estimated": 0.6,
    "emulated": 3.0,
    None: 1.5,
}

# What can be emulated or estimated here.
_EMULATED = "cortex-a72"

# Of $TMPDIR: the kernels of a batch, their objects, and what the worker processes keep there.
_TRIAL_BYTES = 64 << 20


@dataclass(frozen=True)
class _Order:
    """What the caller asked for; the fields are the arguments of `tune`."""

    request: ModelRequest
    target: TargetSpec
    endpoint: Endpoint | None
    options: TuneOptions
    output: Path | None
    tuning_records: Sequence[Path]
    cross_compiler: str | None
    fusion: bool
    strict_fusion: bool
    model: "Model | None"


@dataclass(frozen=True)
class _Board:
    """The machine that is measured."""

    endpoint: Endpoint | None
    origin: Origin
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class _Start:
    """Everything that is known before the first trial."""

    order: _Order
    board: _Board | None
    found: RecordSet
    path: Path | None
    earlier: list[Record]
    faults: list[Fault]
    tasks: Sequence[Any]
    fusion: "FusionReport | None"


def tune(
    request: ModelRequest | str,
    target: TargetSpec,
    endpoint: Endpoint | None = None,
    *,
    options: TuneOptions | None = None,
    output: Path | None = None,
    tuning_records: Sequence[Path] = (),
    cross_compiler: str | None = None,
    fusion: bool = True,
    strict_fusion: bool = False,
    model: "Model | None" = None,
    log: Path | None = None,
    observer: Observer = ignore,
) -> TuneReport:
    """Tune the kernels of a network on this machine or on a board.

    Args:
        request: The network.
        target: The machine to tune for.
        endpoint: The board; None for this machine, whose target it must then be.
        options: How much to try, and how to measure.
        output: Directory of the records; `tuning_logs/<model>/<target>` if None. A run goes on
            with what it finds there.
        tuning_records: Files or directories of other records, whose points are tried early.
        cross_compiler: Linker to use instead of Zig.
        fusion: False tunes the kernels that `build` makes without fusion rules, for comparison.
        strict_fusion: A DC-AC block that is not fused is an error.
        model: Estimates in place of a board (`tvmattend.machine.kernels.KernelModel`).
        log: Takes what TVM and its worker processes print; None leaves that on the screen.
        observer: Told of everything that happens.

    Raises:
        TvmattendError: One of its classes for each thing that can go wrong; RecordsError also if
            another run writes to the same records.
        KeyboardInterrupt: Ctrl-C; every finished trial is recorded and the workers are gone.
    """
    order = _Order(
        ModelRequest.of(request),
        target,
        endpoint,
        options or TuneOptions(),
        output,
        tuning_records,
        cross_compiler,
        fusion,
        strict_fusion,
        model,
    )
    with chatter_to(log), ExitStack() as claims:
        return _run(_start(order, observer, claims), observer)


def plan_tuning(
    request: ModelRequest | str,
    target: TargetSpec,
    endpoint: Endpoint | None = None,
    *,
    options: TuneOptions | None = None,
    output: Path | None = None,
    tuning_records: Sequence[Path] = (),
    cross_compiler: str | None = None,
    fusion: bool = True,
    strict_fusion: bool = False,
    model: "Model | None" = None,
    log: Path | None = None,
    observer: Observer = ignore,
) -> TunePlan:
    """Say what `tune` would do: tasks, sizes, records present, estimated time. Measures nothing.

    The arguments and errors are those of `tune`; a target that is not this machine needs no board.
    """
    order = _Order(
        ModelRequest.of(request),
        target,
        endpoint,
        options or TuneOptions(),
        output,
        tuning_records,
        cross_compiler,
        fusion,
        strict_fusion,
        model,
    )
    with chatter_to(log):
        return _plan(_start(order, observer, None))


def _start(order: _Order, observer: Observer, claims: ExitStack | None) -> _Start:
    """Check everything, reach the board, and lower the network.

    Args:
        order: What is wanted.
        observer: Told of steps and notes.
        claims: Takes the claim on the records; None for a dry run, which changes nothing.
    """
    need_board = claims is not None
    order.options.check()
    request, target = order.request, order.target
    request.check()
    if order.cross_compiler is not None:
        link_command(target, order.cross_compiler)
    if order.model is not None:
        if order.endpoint is not None:
            told = "an estimate needs no board, but one was given"
            raise TuningError(told, "leave one of them out")
        order.model.check(target)
    elif order.endpoint is None and need_board and not target.is_host:
        hint = "give --rpc HOST:PORT of a board that runs `tvmattend device`"
        if target.cpu == _EMULATED:
            hint += (
                "; to try without one, serve an emulated board with "
                f"`tvmattend device --emulate {_EMULATED}`, or estimate with --estimate"
            )
        raise TargetError(
            f"{target.name} is not this machine, so its kernels must be measured on a board", hint
        )
    directory = records_directory(request.name, target, order.output)
    found = find_records(request.name, target, order.tuning_records)
    board = _reach(order, observer)
    origin = None if board is None else board.origin
    path = None if origin is None else record_path(directory, origin, target.num_cores)
    if claims is not None and path is not None:
        mended = _claim(RecordFile(path), claims)
        if mended:
            observer(Note(mended))
            found = find_records(request.name, target, order.tuning_records)
    earlier, faults = read_records(path) if path is not None and path.is_file() else ([], [])
    earlier = own_records(earlier, target, origin, board.machine if board is not None else {})
    tasks, fusion = _tasks(order, observer)
    return _Start(order, board, found, path, earlier, faults, tasks, fusion)


def _claim(file: RecordFile, claims: ExitStack) -> str:
    """See that there is room, take the records for this run alone, mend what a power cut tore.

    Returns:
        What was mended; empty if nothing.
    """
    file.check_writable()
    require_room(temporary_directory(), _TRIAL_BYTES, "free some space there, or set TMPDIR")
    claims.enter_context(file.claimed())
    return file.repair()


def _reach(order: _Order, observer: Observer) -> _Board | None:
    from tvmattend.tuning.machine import board_machine, describe_machine, host_machine

    endpoint, target = order.endpoint, order.target
    if order.model is not None:
        return _Board(None, "estimated", order.model.describe(target.num_cores))
    if endpoint is None:
        if not target.is_host:
            return None
        cores = os.cpu_count() or 1
        if target.num_cores > cores:
            raise TuningError(
                f"{target.num_cores} threads, but this machine has {how_many(cores, 'core')}",
                f"give --threads 1 to {cores}; `build` takes records of the nearest number",
            )
        return _Board(None, "measured", host_machine())
    observer(Stage(f"reaching the board {endpoint}"))
    info = probe(endpoint, target, order.cross_compiler)
    machine = board_machine(info)
    observer(Note(f"the board is {describe_machine(machine)}"))
    for note in info.notes:
        observer(Note(note))
    return _Board(endpoint, "emulated" if info.emulated else "measured", machine)


def _tasks(order: _Order, observer: Observer) -> tuple[Sequence[Any], "FusionReport | None"]:
    """The kernels to tune, and what fusion made of the network."""
    request, target = order.request, order.target
    observer(Stage(f"importing {request.model}"))
    from tvmattend.frontend import import_model

    imported = import_model(request)
    observer(Stage(f"lowering {request.name} for {target.name}"))
    from tvmattend.transform import lower_with_report
    from tvmattend.tuning.tasks import extract_tasks

    what = f"{request.name} for {target.describe()}"
    with compiling(what, "run again with --debug, and report it"):
        lowered = lower_with_report(imported.ir_module, target, rules=None if order.fusion else ())
        if order.strict_fusion:
            lowered.fusion.require_all_blocks()
        return extract_tasks(lowered.mod, target), lowered.fusion


def _run(start: _Start, observer: Observer) -> TuneReport:
    from tvmattend.tuning.cost import CostModel
    from tvmattend.tuning.crew import Nobody
    from tvmattend.tuning.run import TuningRun

    order, board, path = start.order, start.board, start.path
    options = order.options
    assert board is not None  # noqa: S101  (`need_board`)
    assert path is not None  # noqa: S101
    plan = _plan(start)
    tally = Tally(observer)
    if plan.trials == 0:
        observer(Note(f"all {plan.done} trials are recorded; raise --trials to go on"))
        hired: AbstractContextManager[Crew] = nullcontext(Nobody(board.origin, board.machine))
    else:
        observer(Stage("starting the builder and the runner"))
        hired = hire(
            order.target,
            options,
            board.endpoint,
            board.origin,
            board.machine,
            order.cross_compiler,
            order.model,
            tally,
        )
    with hired as crew:
        if start.earlier and plan.trials:
            observer(Stage(f"learning from {len(start.earlier)} recorded trials"))
        run = TuningRun(
            model=order.request.name,
            target=order.target,
            tasks=start.tasks,
            file=RecordFile(path),
            earlier=start.earlier,
            found=start.found,
            options=options,
            crew=crew,
            ranker=CostModel(order.target, options.seed),
            observer=tally,
            incidents=tally.incidents,
        )
        observer(Planned(plan))
        return run.run()


def _plan(start: _Start) -> TunePlan:
    from tvmattend.tuning.run import recorded
    from tvmattend.tuning.search import open_points

    order, options = start.order, start.order.options
    tasks = []
    room = 0
    # The run's own file is among those found, unless --output puts it elsewhere.
    apart = start.path is not None and start.path.resolve() not in start.found.files
    for task in start.tasks:
        own = recorded(task, start.earlier)
        here = len(own)
        counts = dict(start.found.count(task.key))
        if here and apart and start.board is not None:
            origin = start.board.origin
            counts[origin] = counts.get(origin, 0) + here
        room += max(0, min(open_points(task, own), options.trials_per_task - here))
        tasks.append(
            TaskPlan(
                name=task.name,
                key=task.key,
                kernel=task.space.kernel,
                weight=task.weight,
                flops=task.flops,
                points=task.space.size,
                trials=here,
                records=counts,
            )
        )
    done = sum(task.trials for task in tasks)
    trials = max(0, min(options.trials - done, room))
    notes = []
    if start.found.records or start.found.faults or start.found.foreign:
        notes.append(f"found {start.found.describe()}")
    if start.faults and apart:
        notes.append(f"{len(start.faults)} unreadable lines skipped (first: {start.faults[0]})")
    origin_or_none = None if start.board is None else start.board.origin
    return TunePlan(
        model=order.request.name,
        target=order.target,
        origin=origin_or_none,
        machine={} if start.board is None else start.board.machine,
        path=start.path,
        tasks=tuple(tasks),
        trials=trials,
        done=done,
        seconds=trials * _seconds_a_trial(start, origin_or_none),
        notes=tuple(notes),
        fusion=start.fusion,
    )


def _seconds_a_trial(start: _Start, origin: Origin | None) -> float:
    known = [record.wall_secs for record in start.earlier if record.wall_secs > 0]
    return statistics.median(known) if known else _TRIAL_SECS[origin]
