# SPDX-License-Identifier: Apache-2.0
"""Files of results are looked at before a benchmark starts, and written whole or not at all."""

import errno
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tvmattend.bench.host import describe_machine, machine_slug
from tvmattend.bench.results import (
    read_entries,
    results_option,
    results_path,
    target_option,
    write_entries,
    write_text,
)
from tvmattend.errors import InputError, StorageError
from tvmattend.target import TargetSpec, host_target, parse_target


def run(place: Path) -> Result:
    @click.command()
    @results_option(Path("unused"))
    def benchmark(results: Path) -> None:
        write_entries(results / "figures.json", {"measured": 1})

    return CliRunner().invoke(benchmark, ["--results", str(place)])


def test_the_directory_is_made(tmp_path: Path) -> None:
    assert run(tmp_path / "a" / "b").exit_code == 0
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["figures.json"]
    assert read_entries(tmp_path / "a" / "b" / "figures.json", None) == {"measured": 1}


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_place_that_takes_no_files_is_a_usage_error(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    found = run(Path(place))
    assert found.exit_code == 2
    assert "--results" in found.output


def test_results_that_cannot_be_read_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "others.json").write_text("{ torn")
    found = run(tmp_path)
    assert isinstance(found.exception, InputError)
    assert "others.json is no JSON" in str(found.exception)
    assert not (tmp_path / "figures.json").exists()


def test_what_was_there_stays_if_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.json"
    write_entries(path, [1, 2])

    def full(part: Path, *arguments: object, **options: object) -> None:
        with part.open("w", encoding="utf-8") as stream:
            stream.write("[1,")
        raise OSError(errno.ENOSPC, "No space left on device", str(part))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        write_text(path, "[3]")
    assert json.loads(path.read_text(encoding="utf-8")) == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_has_its_default(tmp_path: Path) -> None:
    assert read_entries(tmp_path / "none.json", []) == []


def test_code_of_another_level_has_a_file_of_its_own() -> None:
    machine, place = describe_machine(), Path("results")
    plain = results_path(place, "fusion", machine, host_target())
    assert plain == place / f"fusion-{machine_slug(machine)}.json"
    older = results_path(place, "fusion", machine, parse_target("x86-64-v2"))
    assert older == plain.with_name(f"{plain.stem}-x86-64-v2.json")


@pytest.mark.parametrize(
    ("target", "says"),
    [("cortex-a72", "this machine cannot run code for"), ("x86-65", "unknown target `x86-65`")],
)
def test_a_benchmark_that_times_wants_code_for_this_machine(target: str, says: str) -> None:
    @click.command()
    @target_option()
    def script(target: TargetSpec) -> None:
        click.echo(target.cpu)

    refused = CliRunner().invoke(script, ["--target", target])
    assert refused.exit_code == 2
    assert says in refused.output
    assert CliRunner().invoke(script).output.strip() == host_target().cpu
