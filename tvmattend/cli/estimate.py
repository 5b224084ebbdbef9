# SPDX-License-Identifier: Apache-2.0
"""`tvmattend estimate`: how long a Cortex-A72 would take, without one."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmattend.text import how_many

if TYPE_CHECKING:
    from tvmattend.machine.estimate import Estimate


class _Clock(click.ParamType[float]):
    name = "HZ"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read `1.5GHz`, `1800MHz` or a number of hertz."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GHz|MHz|Hz)?", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"`{value}` is not a clock; write 1.5GHz or 1500MHz", param, ctx)
        hertz = float(match[1]) * {"g": 1e9, "m": 1e6}.get((match[2] or "h")[0].lower(), 1.0)
        # Below and above, DRAM's share of the time was never compared with anything.
        if not 0.5e9 <= hertz <= 2.5e9:
            self.fail(f"`{value}` is no clock of a Cortex-A72 (0.5 to 2.5 GHz)", param, ctx)
        return hertz


@click.command()
@click.argument("words", nargs=-1, metavar="[BUNDLE | --exec -- COMMAND...]")
@click.option("--exec", "is_program", is_flag=True, help="Estimate any aarch64 Linux program.")
@click.option(
    "--threads", default="1", show_default=True, type=click.Choice(["1", "4"]), help="Of the board."
)
@click.option("--clock", default="1.8GHz", show_default=True, type=_Clock(), help="Of the core.")
@click.option(
    "--no-caches", is_flag=True, help="Leave the caches out: twice as fast, and too short."
)
@click.option(
    "--baseline",
    metavar="COMMAND",
    help="With --exec: a command whose cycles are subtracted, e.g. one inference fewer.",
)
@click.option(
    "--sysroot",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --exec: where the program's /lib is.  [default: this machine's files]",
)
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(1), help="Kernels to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    words: tuple[str, ...],
    is_program: bool,
    threads: str,
    clock: float,
    no_caches: bool,
    baseline: str | None,
    sysroot: Path | None,
    top: int,
    as_json: bool,
) -> None:
    """Estimate the time of BUNDLE, or of a program, on a Cortex-A72 (Raspberry Pi 4).

    Executed blocks are counted under QEMU, with caches, and run through a model of the core. With
    --exec, a program that calls close(0x0A720002) and close(0x0A720003) is counted between the two,
    after close(0x0A720001) has begun to warm the caches; another is counted as a whole.
    """
    from tvmattend.machine.parameters import SHIPPED

    parameters = SHIPPED.but(clock_hz=clock)
    notes: list[str] = []

    def say(text: str) -> None:
        click.echo(text, err=True)
        if text.startswith(_NOTE) and text not in notes:
            notes.append(text)

    if is_program:
        if not words:
            raise click.UsageError("--exec needs a command: --exec -- ./program arguments")
        from tvmattend.machine.programs import estimate_program

        found = estimate_program(
            words, int(threads), parameters, not no_caches, baseline, sysroot, say
        )
        subject: dict[str, Any] = {"command": list(words)}
    else:
        if len(words) != 1:
            raise click.UsageError("give one BUNDLE, or --exec -- COMMAND")
        if baseline is not None or sysroot is not None:
            raise click.UsageError("--baseline and --sysroot go with --exec")
        from tvmattend.bundle import Manifest
        from tvmattend.machine.bundles import estimate_bundle
        from tvmattend.runtime.network import read_manifest

        # Read as strictly as this machine reads it before it runs a bundle.
        Manifest.from_json(read_manifest(Path(words[0])))
        found = estimate_bundle(Path(words[0]), int(threads), parameters, not no_caches, say)
        subject = {"bundle": words[0]}
    _show(found, {**subject, "notes": notes}, top, not no_caches, as_json)


# Begins what is said of an estimate, not of the work on it: it goes into the JSON as well.
_NOTE = "note: "

# Seconds below which a program has nothing in common with the networks of the validation.
_SHORT = 1e-4


def _figure(value: float, places: int) -> str:
    """Write a number with so many places, or more where fewer than three digits would show."""
    if value > 0:
        places = max(places, 2 - math.floor(math.log10(value)))
    return f"{value:.{places}f}"


def _count(value: float, places: int = 1) -> str:
    """Write a count, in millions unless it is small."""
    return f"{_figure(value / 1e6, places)} M" if value >= 1e5 else f"{value:.0f}"


def _show(
    found: "Estimate", subject: dict[str, Any], top: int, caches: bool, as_json: bool
) -> None:
    from tvmattend.machine.parameters import MODEL_ERROR

    # Without caches nothing was validated.
    error = MODEL_ERROR[1 if found.threads == 1 else 4] if caches else None
    if as_json:
        data = {**subject, "estimated": True, **found.to_json(), "model_error": error}
        click.echo(json.dumps({**data, "caches": caches}))
        return
    data = found.to_json()
    clock = data["clock_hz"] / 1e9
    click.echo(
        f"{_figure(data['ms'], 2)} ms, {_count(data['cycles'])} cycles at {clock:.2f} GHz, "
        f"{how_many(found.threads, 'thread')} (estimated)"
    )
    if error is None:
        click.echo("without caches: too short by 7 to 45 % for most networks")
    else:
        of = ", of whole networks" if "command" in subject else ""
        click.echo(
            f"mean error of such estimates{of}: {100 * error:.1f} % (benchmarks/a72_validation.py)"
        )
        if "command" in subject and found.seconds < _SHORT:
            click.echo("nothing as short as this was compared with a board: its error is not known")
    click.echo(
        f"{_count(data['instructions'])} instructions, FMA utilisation "
        f"{100 * data['fma_utilisation']:.0f} %, L1D misses {_count(data['l1d_misses'], 2)}, "
        f"L2 misses {_count(data['l2_misses'], 2)}, DRAM {_figure(data['dram_bytes'] / 1e6, 1)} MB"
    )
    click.echo(f"\n{'kernel':<44}{'calls':>6}{'ms':>12}{'share':>7}{'FMA':>6}  bound")
    for part in data["kernels"][:top]:
        share = 100 * part["cycles"] / data["cycles"] if data["cycles"] else 0.0
        click.echo(
            f"{part['name'][:43]:<44}{part['calls']:>6}{_figure(part['ms'], 3):>12}{share:>6.1f}%"
            f"{100 * part['fma_utilisation']:>5.0f}%  {part['bound']}"
        )
        if part["modules"]:
            click.echo(f"    {', '.join(part['modules'])}")
