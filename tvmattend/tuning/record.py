# SPDX-License-Identifier: Apache-2.0
"""What a trial leaves behind: one value, one self-contained line of JSON."""

import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from tvmattend.target import TargetSpec

SCHEMA = 1

Status = Literal["ok", "build-error", "run-error", "timeout"]
Origin = Literal["measured", "estimated", "emulated"]
STATUSES: tuple[str, ...] = get_args(Status)
# In the order in which a build believes them; times are never compared across origins.
ORIGINS: tuple[Origin, ...] = get_args(Origin)

_LONGEST = 1e9  # seconds; what is longer is damage
_ERROR_LINE = re.compile(r"[\w.]+(?:Error|Exception): .")
# A traceback that was made one line: from here to the exception that ends it.
_FLAT_TRACEBACK = re.compile(
    r"Traceback \(most recent call last\):.*[\s;](?=[\w.]+(?:Error|Exception)(?:: |$))"
)
_ERROR_LENGTH = 300  # one line for a person; the whole text is in the log


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        task: The kernel's name in the lowered module, for a reader.
        key: The kernel's identity (`Task.key`).
        kernel: The family of its design space, e.g. `conv2d_pixels`.
        point: The value of every knob.
        status: What became of it.
        origin: Where the time comes from.
        machine: Core, model, clock and so on of the machine that ran or modelled it.
        target: TVM's JSON of the target; its `num-cores` is the thread count.
        trace: The schedule's trace as MetaSchedule writes it; None if there was no schedule.
        run_secs: Seconds a call, one figure a repeat; empty unless the status is `ok`.
        error: One line about a failure; empty if the status is `ok`.
        tvm: TVM's version.
        seed: The run's seed.
        time: When, UTC, ISO 8601.
        wall_secs: Seconds that the trial took, building and measuring; 0 if unknown.
        conditions: The board's governor, clock, temperature and throttling `before` and `after`
            the figures were taken, and what was `disturbed` in between; empty where it shows none.
        sent: How often the kernel was sent to be measured: more than once after a fault.
        quarantined: Whether it took the board down, so that no run ever sends it again.
    """

    task: str
    key: str
    kernel: str
    point: Mapping[str, int]
    status: Status
    origin: Origin
    machine: Mapping[str, Any]
    target: Mapping[str, Any]
    trace: Any = None
    run_secs: tuple[float, ...] = ()
    error: str = ""
    tvm: str = ""
    seed: int = 0
    time: str = field(default_factory=lambda: utc_now())  # noqa: PLW0108  (defined below)
    wall_secs: float = 0.0
    conditions: Mapping[str, Any] = field(default_factory=dict)
    sent: int = 1
    quarantined: bool = False

    @property
    def ok(self) -> bool:
        """Whether it has a time."""
        return self.status == "ok"

    @property
    def seconds(self) -> float:
        """Median seconds a call; infinity for a failure."""
        return statistics.median(self.run_secs) if self.run_secs else math.inf

    @property
    def spread(self) -> float:
        """How far the figures lie apart, largest less smallest, as a share of the median."""
        return (max(self.run_secs) - min(self.run_secs)) / self.seconds if self.run_secs else 0.0

    @property
    def threads(self) -> int:
        """Threads that the kernel was scheduled for and measured with."""
        return int(self.target["num-cores"])

    def is_for(self, target: TargetSpec) -> bool:
        """Whether it was made for that core with those features, by any number of threads."""
        return _core(self.target) == _core(target.to_json())

    def to_line(self) -> str:
        """The record as one line of JSON, newline included."""
        fields: dict[str, Any] = {"schema": SCHEMA}
        for name, default in _FIELDS.items():
            value = getattr(self, name)
            if name not in _OPTIONAL or value != default:
                fields[name] = list(value) if isinstance(value, tuple) else value
            if name == "run_secs" and self.run_secs:  # for whoever reads the file; not read back
                fields |= {"median_secs": self.seconds, "spread": round(self.spread, 4)}
        return json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n"


# Of later versions, hence not in every file: name, type, and what its absence means.
_OPTIONAL: Mapping[str, tuple[type, Any]] = {
    "conditions": (dict, {}),
    "sent": (int, 1),
    "quarantined": (bool, False),
}
_FIELDS: Mapping[str, Any] = {
    name: _OPTIONAL[name][1] if name in _OPTIONAL else None for name in Record.__dataclass_fields__
}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "task": str,
    "key": str,
    "kernel": str,
    "point": dict,
    "status": str,
    "origin": str,
    "machine": dict,
    "target": dict,
    "run_secs": list,
    "error": str,
    "tvm": str,
    "seed": int,
    "time": str,
    "wall_secs": (int, float),
}


def utc_now() -> str:
    """Now, as records write it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def one_line(text: str) -> str:
    """The line of an error's text that says it: the last `SomeError: ...`, else the last of all.

    Of a traceback within that line, as a linker written in Python leaves it, the end stays.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if _ERROR_LINE.match(line)]
    line = _FLAT_TRACEBACK.sub("", (named or lines or ["no message"])[-1])
    return line if len(line) <= _ERROR_LENGTH else line[: _ERROR_LENGTH - 3] + "..."


def parse_record(line: str) -> Record:
    """Read one line back.

    Raises:
        ValueError: The line is no JSON, of a newer schema, or not a record; the text says which.
    """
    try:
        fields = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(fields, dict) or "schema" not in fields:
        raise ValueError("not a tuning record")
    if fields["schema"] != SCHEMA:
        raise ValueError(f"schema {fields['schema']!r}; this tvmattend reads {SCHEMA}")
    for name, kind in _TYPES.items():
        if not isinstance(fields.get(name), kind) or isinstance(fields[name], bool):
            raise ValueError(f"`{name}` is missing or of a wrong type")  # noqa: TRY004
    for name, (kind, _) in _OPTIONAL.items():
        if name in fields and type(fields[name]) is not kind:
            raise ValueError(f"`{name}` is of a wrong type")
    _check_values(fields)
    known: dict[str, Any] = {name: fields.get(name, default) for name, default in _FIELDS.items()}
    known["run_secs"] = tuple(float(second) for second in fields["run_secs"])
    return Record(**known)


def _check_values(fields: Mapping[str, Any]) -> None:
    if fields["status"] not in STATUSES:
        raise ValueError(f"unknown status {fields['status']!r}")
    if fields["origin"] not in ORIGINS:
        raise ValueError(f"unknown origin {fields['origin']!r}")
    if not all(_is_number(second) and 0 < second < _LONGEST for second in fields["run_secs"]):
        raise ValueError("`run_secs` holds something that is not a time")
    if not 0 <= fields["wall_secs"] < _LONGEST:
        raise ValueError("`wall_secs` is not a time")
    if (fields["status"] == "ok") != bool(fields["run_secs"]):
        raise ValueError(f"status {fields['status']!r} with {len(fields['run_secs'])} times")
    if not all(type(value) is int for value in fields["point"].values()):
        raise ValueError("`point` holds something that is not an integer")
    cores = fields["target"].get("num-cores")
    if type(cores) is not int or cores < 1:
        raise ValueError("`target` has no num-cores")
    flags = fields["target"].get("mattr", [])
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise ValueError("`mattr` of the target is not a list of texts")


def _finite(text: str) -> float:
    """Read a number of JSON; Python's reader also takes NaN and what is too large for a float."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _core(target: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    return (
        str(target.get("mtriple")),
        str(target.get("mcpu")),
        tuple(str(flag) for flag in target.get("mattr") or ()),
    )
