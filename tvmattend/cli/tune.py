# SPDX-License-Identifier: Apache-2.0
"""`tvmattend tune`: try schedules of a network's kernels on a machine, and record their times."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tvmattend.cli.board_options import board_endpoint, key_option
from tvmattend.cli.bundle_options import rpc_option
from tvmattend.cli.options import THREADS, THREADS_DEFAULT, Seconds, model_options
from tvmattend.errors import StorageError, TvmattendError
from tvmattend.frontend.request import ModelRequest
from tvmattend.target import TargetSpec, parse_target

if TYPE_CHECKING:
    from tvmattend.cli.tune_progress import Progress
    from tvmattend.device.endpoint import Endpoint
    from tvmattend.tuning.estimated import Model
    from tvmattend.tuning.report import TunePlan, TuneReport

_INTERRUPTED = 130  # what a shell gives a program that SIGINT ended
_OF_PRUNE = {"model", "target", "output", "prune", "as_json"}


@click.command("tune")
@model_options
@click.option(
    "--target",
    default="cortex-a72",
    show_default=True,
    help='A preset, "llvm -mtriple=... -mcpu=...", a JSON object, or a TVM tag.',
)
@click.option(
    "--threads", type=THREADS, metavar="N", help=f"Threads of a kernel. {THREADS_DEFAULT}"
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Need no board: estimate, for a Cortex-A72 with 1 or 4 threads. Records say `estimated`.",
)
@rpc_option("Measure on the board that serves there.")
@click.option(
    "--rpc-tracker",
    metavar="HOST:PORT",
    help="Measure on every free board of this tracker that has the key, at once. "
    "[default: $TVM_TRACKER_HOST:$TVM_TRACKER_PORT]",
)
@key_option
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Trials of the whole network, those already recorded included.",
)
@click.option(
    "--trials-per-task",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Of one kernel.",
)
@click.option(
    "--timeout",
    type=Seconds(1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="To build a kernel, and again to measure it (and 15 s more to reach a board).",
)
@click.option(
    "--board-wait",
    type=Seconds(0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a board that went away or fell silent is waited for; at least --timeout + 10.",
)
@click.option(
    "--number",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Calls in one figure.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Figures; the median counts.",
)
@click.option(
    "--min-repeat-ms",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    metavar="MS",
    help="Call more often until a figure took this long.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Records to write and to go on with. [default: tuning_logs/<model>/<target>]",
)
@click.option(
    "--tuning-records",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Other records, whose best points are tried early; may be repeated.",
)
@click.option("--cross-compiler", metavar="CMD", help="Link with this command instead of Zig.")
@click.option(
    "--no-fusion", is_flag=True, help="Tune what `build --no-fusion` builds, for comparison."
)
@click.option("--strict-fusion", is_flag=True, help="A DC-AC block that is not fused is an error.")
@click.option("--dry-run", is_flag=True, help="Show tasks, records, estimated time; run nothing.")
@click.option(
    "--prune",
    type=click.IntRange(1),
    metavar="K",
    help="Run nothing; keep the K best records of each kernel in the output directory.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where TVM's own messages go. [default: a file in the cache]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    request: ModelRequest,
    target: str,
    threads: int | None,
    estimate: bool,
    rpc: str | None,
    rpc_tracker: str | None,
    rpc_key: str | None,
    output: Path | None,
    tuning_records: tuple[Path, ...],
    cross_compiler: str | None,
    no_fusion: bool,
    strict_fusion: bool,
    dry_run: bool,
    prune: int | None,
    log: Path | None,
    as_json: bool,
    **numbers: Any,
) -> None:
    """Tune the kernels of a network on this machine or on a board over RPC.

    A second run goes on where the first one ended, Ctrl-C included; `build` uses what was recorded.
    """
    request.check()
    spec = parse_target(target, 1 if estimate and threads is None else threads)
    if no_fusion and strict_fusion:
        raise click.UsageError("--strict-fusion asks for what --no-fusion switches off")
    if prune is not None:
        _check_prune(click.get_current_context())
        _prune(request, spec, output, prune, as_json)
        return
    if estimate:
        if (rpc, rpc_tracker, rpc_key) != (None, None, None):
            raise click.UsageError("--estimate needs no board; --rpc... does not go with it")
        endpoint = None
    else:
        endpoint = board_endpoint(rpc, rpc_tracker, rpc_key, environment=not spec.is_host)
    from tvmattend.cli.tune_progress import showing
    from tvmattend.tuning.events import Note, TuneOptions

    log = _log_file(log, request, spec)
    arguments = {
        "options": TuneOptions(seed=request.seed, **numbers),
        "output": output,
        "tuning_records": tuning_records,
        "cross_compiler": cross_compiler,
        "fusion": not no_fusion,
        "strict_fusion": strict_fusion,
        "model": _model() if estimate else None,
        "log": log,
    }
    failure: TvmattendError | OSError | None = None
    with showing(log) as progress:
        if estimate and threads is None:
            progress(Note("kernels are estimated, and tuned, for one thread (--threads 1)"))
        if dry_run:
            from tvmattend.tuning import plan_tuning

            result: TunePlan | TuneReport | None = plan_tuning(
                request, spec, endpoint, observer=progress, **arguments
            )
        else:
            try:
                result = _tune(request, spec, endpoint, progress, arguments)
            except (TvmattendError, OSError) as error:
                result, failure = progress.report, error
    if result is not None:
        click.echo(json.dumps(result.to_json(), indent=2) if as_json else str(result))
    if failure is not None:
        raise failure
    if progress.interrupted:
        sys.exit(_INTERRUPTED)


def _tune(
    request: ModelRequest,
    target: TargetSpec,
    endpoint: "Endpoint | None",
    progress: "Progress",
    arguments: dict[str, Any],
) -> "TuneReport | None":
    """Tune; after Ctrl-C or `kill` give what was reached, or None if that was before any trial."""
    from tvmattend.tuning import tune

    try:
        report: TuneReport = tune(request, target, endpoint, observer=progress, **arguments)
    except KeyboardInterrupt:
        return progress.stop()
    return report


def _log_file(given: Path | None, request: ModelRequest, target: TargetSpec) -> Path:
    from tvmattend.storage import cache_root

    if given is None:
        return cache_root() / "logs" / f"tune-{request.name}-{target.name}.log"
    if not given.absolute().parent.is_dir():
        raise StorageError(f"there is no directory {given.absolute().parent} for --log", "make it")
    return given


def _model() -> "Model":
    from tvmattend.machine.kernels import KernelModel

    return KernelModel()


def _check_prune(context: click.Context) -> None:
    """Refuse what was given on the command line and says nothing to `--prune`.

    Raises:
        click.UsageError: Naming it.
    """
    unused = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _OF_PRUNE
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if unused:
        raise click.UsageError(
            f"--prune only removes records of --model and --target: {', '.join(unused)} "
            f"{'do' if len(unused) > 1 else 'does'} not go with it"
        )


def _prune(
    request: ModelRequest, target: TargetSpec, output: Path | None, keep: int, as_json: bool
) -> None:
    from tvmattend.errors import RecordsError
    from tvmattend.tuning.record_file import prune_files
    from tvmattend.tuning.records import records_directory

    directory = records_directory(request.name, target, output)
    files = sorted(directory.rglob("*.jsonl"))
    if not files:
        raise RecordsError(f"`{directory}` holds no tuning records", "tune first, or give --output")
    rows = [
        {"records": str(path), "before": before, "after": after}
        for path, (before, after) in zip(files, prune_files(files, keep), strict=True)
    ]
    if as_json:
        click.echo(json.dumps({"pruned": rows}, indent=2))
        return
    for row in rows:
        click.echo(f"{row['records']}: {row['before']} -> {row['after']} records")
