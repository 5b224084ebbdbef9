# SPDX-License-Identifier: Apache-2.0
"""Files of results: looked at before anything is measured, written whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tvmattend.bench.host import machine_slug
from tvmattend.errors import InputError, StorageError, TvmattendError
from tvmattend.storage import replace_text
from tvmattend.target import TargetSpec, host_target, parse_target


def results_option(default: Path) -> Callable[[Any], Any]:
    """`--results DIR` of a benchmark: made, and its files read, before the benchmark starts.

    Args:
        default: Where results go unless the user says otherwise.
    """
    return click.option(
        "--results",
        type=click.Path(path_type=Path, file_okay=False),
        default=default,
        callback=_ready,
        help="Directory that the results are written to.",
    )


def target_option() -> Callable[[Any], Any]:
    """`--target` of a benchmark that times here: this machine, or an older level of it.

    So kernels with AVX2 can be timed where there is AVX-512.
    """
    return click.option(
        "--target",
        default="host",
        show_default=True,
        callback=_runs_here,
        help="This machine, or a level of it.",
    )


def results_path(results: Path, kind: str, machine: dict[str, Any], target: TargetSpec) -> Path:
    """The file for figures of a kind: `fusion-<machine>.json`.

    Args:
        results: The directory.
        kind: Begins the name.
        machine: As `describe_machine` tells it.
        target: Its name ends the file's if it is not the machine's own.
    """
    level = "" if target.name == host_target().name else f"-{target.name}"
    return results / f"{kind}-{machine_slug(machine)}{level}.json"


def read_entries(path: Path, default: Any) -> Any:
    """What a file of results holds, or what stands for a file that is not there.

    Raises:
        InputError: It is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}", "mend it or remove it") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file of results by another text, with a newline at its end.

    Raises:
        StorageError: It cannot be written; what was there still is.
    """
    try:
        replace_text(path, f"{text.rstrip()}\n")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}", "choose another --results"
        ) from error


def write_entries(path: Path, entries: Any) -> None:
    """Replace a file of results by other entries.

    Raises:
        StorageError: As for `write_text`.
    """
    write_text(path, json.dumps(entries, indent=1))


def _ready(_context: click.Context, _parameter: click.Parameter, place: Path) -> Path:
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / ".empty", "")
        (place / ".empty").unlink()
    except OSError as error:
        raise click.BadParameter(f"{place} cannot be written: {error.strerror or error}") from error
    except StorageError as error:
        raise click.BadParameter(str(error)) from error
    for path in place.glob("*.json"):
        read_entries(path, None)
    return place


def _runs_here(_context: click.Context, _parameter: click.Parameter, text: str) -> TargetSpec:
    try:
        target = parse_target(text)
    except TvmattendError as error:
        raise click.BadParameter(f"{error}; {error.hint}") from error
    if not target.is_host:
        raise click.BadParameter(f"this machine cannot run code for {target.describe()}")
    return target
