# SPDX-License-Identifier: Apache-2.0
"""Finding records: whose they are, which to believe, and which one a kernel is built with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvmattend
from tvmattend.errors import RecordsError
from tvmattend.target import TargetSpec
from tvmattend.tuning.record import ORIGINS, Origin, Record
from tvmattend.tuning.record_file import Fault, RecordFile, read_records

__all__ = ["Fault", "Record", "RecordFile", "RecordSet", "find_records", "read_records"]

ROOT_NAME = "tuning_logs"

Accepts = Callable[[Mapping[str, int]], bool]


@dataclass(frozen=True)
class RecordSet:
    """Records that a build or a tuning run may use.

    Attributes:
        records: The records, those of the source with the highest precedence first.
        sources: For each record, the rank of where it was found; times of different sources may
            come from different machines and are not compared.
        files: The files that were read.
        faults: Lines that were skipped.
        foreign: Records left out because they are for another core.
        lent: Records that were made for the x86-64 level of the core, not for the core.
    """

    records: tuple[Record, ...] = ()
    sources: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()
    faults: tuple[Fault, ...] = ()
    foreign: int = 0
    lent: int = 0

    def best(self, key: str, num_cores: int, accepts: Accepts | None = None) -> Record | None:
        """The record that a kernel should be built with.

        Measured beats estimated beats emulated. Within an origin the same number of threads comes
        first, then the nearest; then the source that the user gave, then the working directory's,
        then the shipped one; only within all of that does the time decide.

        Args:
            key: The kernel (`Task.key`).
            num_cores: Threads that the kernel will run with.
            accepts: Which points the design space still has (`DesignSpace.accepts`).

        Returns:
            The record, which names its origin and threads, or None.
        """
        ranked = self.ranked(key, num_cores, accepts)
        return ranked[0] if ranked else None

    def ranked(self, key: str, num_cores: int, accepts: Accepts | None = None) -> list[Record]:
        """All successful records of a kernel, in the order in which `best` prefers them."""

        def preference(item: tuple[Record, int]) -> tuple[int, int, int, int, float]:
            record, source = item
            apart = abs(record.threads - num_cores)
            return ORIGINS.index(record.origin), apart, record.threads, source, record.seconds

        usable = [
            (record, source)
            for record, source in zip(self.records, self.sources, strict=True)
            if record.key == key and record.ok and (accepts is None or accepts(record.point))
        ]
        return [record for record, _ in sorted(usable, key=preference)]

    def count(self, key: str) -> dict[Origin, int]:
        """Number of records of a kernel by origin, failures included."""
        found = [record.origin for record in self.records if record.key == key]
        return {origin: found.count(origin) for origin in ORIGINS if origin in found}

    def describe(self) -> str:
        """One line for a person."""
        files = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        parts = [f"{len(self.records)} records in {files}"]
        if self.faults:
            parts.append(f"{len(self.faults)} unreadable lines skipped (first: {self.faults[0]})")
        if self.lent:
            parts.append(f"{self.lent} made for the core's x86-64 level")
        if self.foreign:
            parts.append(f"{self.foreign} for another core left out")
        return ", ".join(parts)


# What tells models apart (`tvmattend.machine.kernels.KernelModel.describe`).
_MODEL = ("digest", "llvm")


def shipped_root() -> Path | None:
    """The records that came with tvmattend: inside a wheel, or beside the package in a checkout."""
    package = Path(tvmattend.__file__).resolve().parent
    if (package / ROOT_NAME).is_dir():
        return package / ROOT_NAME
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / ROOT_NAME).is_dir():
        return checkout / ROOT_NAME
    return None


def records_directory(model_name: str, target: TargetSpec, output: Path | None = None) -> Path:
    """Where tuning puts the records of a network; origin and threads come below it."""
    return output if output is not None else Path.cwd() / ROOT_NAME / model_name / target.name


def own_records(
    records: Sequence[Record], target: TargetSpec, origin: Origin | None, machine: Mapping[str, Any]
) -> list[Record]:
    """Of the lines of a run's own file, those that the run goes on with.

    Args:
        records: Of the file.
        target: The machine that is tuned for.
        origin: Of the run's own.
        machine: That measures or estimates; another model's estimates are not comparable.
    """
    alike = _MODEL if origin == "estimated" else ()
    return [
        record
        for record in records
        if record.origin == origin
        and record.threads == target.num_cores
        and record.is_for(target)
        and all(record.machine.get(name) == machine.get(name) for name in alike)
    ]


def find_records(
    model_name: str,
    target: TargetSpec,
    extra: Sequence[Path] = (),
    roots: Sequence[Path] | None = None,
) -> RecordSet:
    """Gather the records of a network on a target.

    Args:
        model_name: The directory name of the network, e.g. `attendnext`.
        target: The machine; records for other cores are left out and counted, but for those of its
            x86-64 level, whose kernels are the same.
        extra: Files or directories (searched to the bottom) that the user gave.
        roots: Directories laid out `<model>/<target>/`; by default `tuning_logs` of the working
            directory, then what ships.

    Raises:
        RecordsError: Something the user gave is not there, cannot be read, or holds no records.
    """
    groups = [_given_files(path) for path in extra]
    if roots is None:
        shipped = shipped_root()
        roots = [Path.cwd() / ROOT_NAME, *([shipped] if shipped else [])]
    level = target.level
    groups += [_files_under(root / model_name / target.name) for root in roots]
    if level is not None:
        groups += [_files_under(root / model_name / level.name) for root in roots]
    records: list[Record] = []
    sources: list[int] = []
    faults: list[Fault] = []
    files: dict[Path, None] = {}
    contents: list[list[Record]] = []
    foreign = lent = 0
    for rank, group in enumerate(groups):
        empty = rank < len(extra)
        for path in group:
            if path.resolve() in files:  # the working directory is the checkout, or given twice
                empty = False
                continue
            found, broken = read_records(path)
            if found and found in contents:  # those of a checkout, which are installed as well
                empty = False
                continue
            contents.append(found)
            files[path.resolve()] = None
            own = [record for record in found if record.is_for(target)]
            others = [record for record in found if level is not None and record.is_for(level)]
            foreign += len(found) - len(own) - len(others)
            lent += len(others)
            records += own + others
            sources += [rank] * len(own + others)
            faults += broken
            empty = empty and not found
        if empty:  # to go on without would be to ignore what was asked for
            told = [str(fault) for fault in faults if fault.path in group][:1]
            raise RecordsError(
                f"no line of `{extra[rank]}` is a tuning record{''.join(f' ({x})' for x in told)}",
                "check --tuning-records: files are those that `tvmattend tune` writes",
            )
    return RecordSet(tuple(records), tuple(sources), tuple(files), tuple(faults), foreign, lent)


def _files_under(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.jsonl")) if directory.is_dir() else []


def _given_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RecordsError(
            f"no tuning records at `{path}`", "give a .jsonl file or a directory that holds some"
        )
    files = _files_under(path)
    if not files:
        raise RecordsError(
            f"`{path}` holds no tuning records (*.jsonl)", "check --tuning-records, or tune first"
        )
    return files
