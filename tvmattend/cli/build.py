# SPDX-License-Identifier: Apache-2.0
"""`tvmattend build`: compile a network into a bundle."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvmattend.cli.bundles import open_bundle
from tvmattend.cli.options import THREADS, THREADS_DEFAULT, model_options, three_numbers
from tvmattend.errors import BundleMismatchError, ValidationError
from tvmattend.frontend.request import ModelRequest
from tvmattend.preprocessing import MEAN, STD, Photographs, Triple, read_labels
from tvmattend.target import TargetSpec, parse_target

if TYPE_CHECKING:
    from tvmattend.codegen.building import BuildReport
    from tvmattend.runtime import Network


@click.command("build")
@model_options
@click.option(
    "--target",
    default="cortex-a72",
    show_default=True,
    help='A preset, "llvm -mtriple=... -mcpu=...", a JSON object, or a TVM tag.',
)
@click.option(
    "--threads",
    type=THREADS,
    metavar="N",
    help=f"Threads of an inference. {THREADS_DEFAULT}",
)
@click.option(
    "--tuning-records",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Records to use before those of ./tuning_logs and the shipped ones; may be repeated.",
)
@click.option("--no-records", is_flag=True, help="Build every kernel with its default schedule.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="[default: artifacts/<model>-<target>]",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.option("--cross-compiler", metavar="CMD", help="Link with this command instead of Zig.")
@click.option(
    "--format",
    "bundle_format",
    type=click.Choice(["standalone", "vm"]),
    default="standalone",
    show_default=True,
    help="A C library that needs nothing, or a Relax executable for TVM's virtual machine.",
)
@click.option(
    "--libc",
    type=click.Choice(["glibc", "musl"]),
    default="glibc",
    show_default=True,
    help="C library of the device; musl with --format standalone only.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="What a standalone library and all its C names begin with. [default: the model's name]",
)
@click.option(
    "--mean",
    callback=three_numbers,
    metavar="R,G,B",
    help="Of the photographs it was trained with, pixels being 0 to 1. [default: ImageNet's]",
)
@click.option("--std", callback=three_numbers, metavar="R,G,B", help="Likewise.")
@click.option(
    "--resize",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Shorter side of a photograph before its middle is cut out. [default: input size / 0.875]",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Names of the classes, one a line.",
)
@click.option("--no-fusion", is_flag=True, help="Leave fusion to TVM alone, for comparison.")
@click.option("--strict-fusion", is_flag=True, help="A DC-AC block that is not fused is an error.")
@click.option(
    "--dump-ir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the IR after every phase, numbered.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Run the golden vectors: here, or on an emulated board for another architecture.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    request: ModelRequest,
    target: str,
    threads: int | None,
    tuning_records: tuple[Path, ...],
    no_records: bool,
    output: Path | None,
    force: bool,
    cross_compiler: str | None,
    bundle_format: str,
    libc: str,
    name: str | None,
    mean: Triple | None,
    std: Triple | None,
    resize: int | None,
    labels: Path | None,
    no_fusion: bool,
    strict_fusion: bool,
    dump_ir: Path | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Compile a network into a bundle: the library, its manifest, golden vectors, device files."""
    request.check()
    spec = parse_target(target, threads)
    if no_fusion and strict_fusion:
        raise click.UsageError("--strict-fusion asks for what --no-fusion switches off")
    if no_records and tuning_records:
        raise click.UsageError("--no-records asks for none, --tuning-records names some")
    if verify:
        _check_verifiable(spec, libc)  # now, not after the minutes of compiling
    if name is not None and bundle_format == "vm":
        raise click.UsageError("--name is of a C library: add --format standalone")
    photographs = None
    if (mean, std, resize) != (None, None, None):
        photographs = Photographs(mean or MEAN, std or STD, resize)
    from tvmattend.codegen import build

    start = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - start:5.1f} s] {text}", err=True)

    report = build(
        request,
        spec,
        output=output,
        force=force,
        tuning_records=tuning_records,
        use_records=not no_records,
        cross_compiler=cross_compiler,
        dump_ir=dump_ir,
        fusion=not no_fusion,
        strict_fusion=strict_fusion,
        format=bundle_format,
        libc=libc,
        name=name,
        photographs=photographs,
        labels=None if labels is None else read_labels(labels),
        observer=say,
    )
    errors = None
    if verify:
        say(f"{report.directory} is written, and not verified yet")
        errors = _verify(report.directory, spec, libc, say)
    if as_json:
        verified = None if errors is None else {"max_rel_error": max(errors)}
        click.echo(json.dumps({**report.to_json(), "verified": verified}, indent=2))
    else:
        _print(report, errors)


def _check_verifiable(target: TargetSpec, libc: str) -> None:
    """Refuse to verify what neither this machine nor an emulated one can run.

    Raises:
        BundleMismatchError: The target has instructions that neither has.
        ToolMissingError: There is no emulator.
    """
    if target.is_host:
        return
    if target.arch != "aarch64":
        raise BundleMismatchError(
            f"--verify: {target.name} has instructions that this machine lacks, and only aarch64 "
            "is emulated",
            "leave --verify out, and run `tvmattend validate BUNDLE` on such a machine",
        )
    from tvmattend.device.emulated import CORE, find_qemu

    if libc != "musl" and target.cpu_flags:  # of musl's the program runs on QEMU's fullest core
        raise BundleMismatchError(
            f"--verify: {target.name} has {', '.join(target.cpu_flags)}, which the emulated "
            f"{CORE} lacks",
            "leave --verify out, and run `tvmattend validate BUNDLE --rpc ...` on a board of that "
            "core; or verify with --libc musl, whose program needs no board",
        )
    find_qemu()


def _verify(
    directory: Path, target: TargetSpec, libc: str, say: Callable[[str], None]
) -> list[float]:
    """Relative error of each golden vector.

    Raises:
        ValidationError: One is above the bundle's tolerance; the bundle stays for a closer look.
        ToolMissingError: There is no emulator for a target that cannot run here.
    """
    if libc == "musl":  # no Python here can load it, nor TVM's server on the board
        from tvmattend.device.emulated import CORE, find_qemu
        from tvmattend.standalone.static_program import open_static

        say("running the golden vectors in a static program")
        core = CORE if target.cpu == CORE else "max"
        emulator = [] if target.is_host else [find_qemu(), "-cpu", core]
        return _golden_errors(directory, open_static(directory, target, emulator))
    if target.is_host:
        say("running the golden vectors here")
        return _golden_errors(directory, open_bundle(directory, None, None))
    from tvmattend.device.emulated import prepare

    board = prepare(say)
    say("running the golden vectors on the emulated board (a minute for a large network)")
    with board.serve() as address:
        return _golden_errors(directory, open_bundle(directory, address, None))


def _golden_errors(directory: Path, opened: AbstractContextManager["Network"]) -> list[float]:
    with opened as net:
        errors: list[float] = net.golden_errors()
        tolerance = float(net.manifest["tolerance"])
    if not all(error <= tolerance for error in errors):
        raise ValidationError(
            f"the golden vectors of {directory} are off by up to {max(errors):.1e}, "
            f"more than {tolerance:.0e}",
            "do not deploy it; build again with --no-records, and report it",
        )
    return errors


def _print(report: "BuildReport", errors: list[float] | None) -> None:
    origins = report.origins()
    tuned = sum(count for origin, count in origins.items() if origin != "default")
    parts = [f"{count} {origin}" for origin, count in origins.items() if count]
    size = sum(path.stat().st_size for path in report.directory.rglob("*") if path.is_file())
    click.echo(f"model    {report.model}")
    click.echo(f"target   {report.target.describe()}")
    click.echo(f"kernels  {len(report.kernels)}, {tuned} with a tuning record ({', '.join(parts)})")
    click.echo(f"records  {report.records}")
    for number, line in enumerate(report.fusion.table()):
        click.echo(f"{'' if number else 'fusion':8} {line}")
    for note in report.notes:
        click.echo(f"note     {note}")
    if not tuned:
        click.echo("note     default schedules come from static reasoning, not from measurements")
    if report.library:
        click.echo(f"library  {report.library}")
    click.echo(f"bundle   {report.directory} ({size / 1e6:.1f} MB)")
    if errors is not None:
        click.echo(f"verified {len(errors)} golden vectors, max relative error {max(errors):.1e}")
