# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from sample_records import FAILED, RECORD, TARGET

from tvmattend.errors import RecordsError
from tvmattend.target import parse_target
from tvmattend.tuning.records import RecordFile, RecordSet, find_records, read_records, shipped_root

A72 = parse_target("cortex-a72")
KEY = RECORD.key


def timed(seconds, threads=4, **change):
    target = {**TARGET, "num-cores": threads}
    return replace(RECORD, run_secs=(seconds,), target=target, **change)


def of(*records, sources=None):
    return RecordSet(tuple(records), tuple(sources or [0] * len(records)))


def write(path, *records):
    for record in records:
        RecordFile(path).append(record)
    return path


def test_nothing_is_best_where_nothing_succeeded():
    assert RecordSet().best(KEY, 4) is None
    assert of(FAILED).best(KEY, 4) is None
    assert of(RECORD).best("another kernel", 4) is None


def test_the_fastest_of_equals_is_best():
    fast, slow = timed(1e-3), timed(2e-3)
    assert of(slow, fast, FAILED).best(KEY, 4) == fast


def test_measured_beats_estimated_beats_emulated_whatever_the_times():
    measured = timed(9e-3)
    estimated = timed(5e-3, origin="estimated")
    emulated = timed(1e-3, origin="emulated")
    assert of(emulated, estimated, measured).best(KEY, 4) == measured
    assert of(emulated, estimated).best(KEY, 4) == estimated
    assert of(emulated).best(KEY, 4) == emulated


def test_the_same_number_of_threads_comes_first_then_the_nearest():
    one, two, eight = timed(1e-3, 1), timed(5e-3, 2), timed(2e-3, 8)
    assert of(one, two, eight).best(KEY, 2) == two
    assert of(one, two, eight).best(KEY, 7) == eight
    assert of(one, eight).best(KEY, 2) == one
    # ... but not before the origin: a time of another machine's model is no substitute.
    assert of(one, timed(1e-4, 4, origin="estimated")).best(KEY, 4) == one


def test_what_the_user_gave_beats_what_ships_though_it_is_slower():
    mine, shipped = timed(4e-3), timed(1e-3)
    assert of(shipped, mine, sources=[2, 0]).best(KEY, 4) == mine


def test_a_point_that_the_space_dropped_is_passed_over():
    gone, there = timed(1e-3, point={"tile": 9}), timed(2e-3, point={"tile": 1})
    accepts = lambda point: point["tile"] == 1  # noqa: E731
    assert of(gone, there).best(KEY, 4, accepts) == there
    assert of(gone).best(KEY, 4, accepts) is None


def test_counts_are_by_origin_failures_included():
    records = of(RECORD, FAILED, replace(RECORD, origin="emulated"))
    assert records.count(KEY) == {"measured": 2, "emulated": 1}
    assert records.count("another") == {}


def test_records_are_found_in_the_given_order_and_once(tmp_path):
    given = write(tmp_path / "given" / "mine.jsonl", timed(3e-3))
    first, second = tmp_path / "here", tmp_path / "shipped"
    write(first / "net/cortex-a72/emulated/4-threads.jsonl", timed(2e-3, origin="emulated"))
    write(second / "net/cortex-a72/estimated/4-threads.jsonl", timed(1e-3, origin="estimated"))
    write(second / "other/cortex-a72/measured/4-threads.jsonl", timed(1e-9))
    (tmp_path / "link").symlink_to(second)
    found = find_records(
        "net", A72, [given, given.parent], roots=[first, second, tmp_path / "link"]
    )
    assert [record.origin for record in found.records] == ["measured", "emulated", "estimated"]
    assert found.sources == (0, 2, 3)
    assert len(found.files) == 3
    assert found.describe() == "3 records in 3 files"


def test_a_copy_of_a_file_says_nothing_new(tmp_path):
    """A checkout in which a wheel of it is installed has the shipped records twice."""
    file = "net/cortex-a72/estimated/4-threads.jsonl"
    for root in ("checkout", "site-packages"):
        write(tmp_path / root / file, timed(1e-3, origin="estimated"), timed(2e-3))
    write(tmp_path / "site-packages" / "net/cortex-a72/estimated/1-threads.jsonl", timed(3e-3, 1))
    roots = [tmp_path / "checkout", tmp_path / "site-packages"]
    found = find_records("net", A72, roots=roots)
    assert found.sources == (0, 0, 1)
    assert found.describe() == "3 records in 2 files"
    again = find_records(
        "net", A72, [tmp_path / root / file for root in ("checkout", "site-packages")], roots=[]
    )
    assert len(again.records) == 2


def test_the_working_directory_and_the_shipped_records_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tvmattend.tuning.records.shipped_root", lambda: tmp_path / "tuning_logs")
    assert find_records("net", A72) == RecordSet()
    write(tmp_path / "tuning_logs/net/cortex-a72/measured/4-threads.jsonl", RECORD)
    found = find_records("net", A72)
    assert found.records == (RECORD,)
    assert found.sources == (0,)


def test_records_of_its_level_serve_a_core_behind_its_own(tmp_path):
    def made_for(name):
        return replace(RECORD, target=parse_target(name, 4).to_json())

    skylake = "llvm -mtriple=x86_64-linux-gnu -mcpu=skylake"
    own, level, other = (made_for(name) for name in (skylake, "x86-64-v3", "x86-64-v4"))
    write(tmp_path / "net/skylake/measured/4-threads.jsonl", own)
    write(tmp_path / "net/x86-64-v3/measured/4-threads.jsonl", level)
    write(tmp_path / "net/x86-64-v4/measured/4-threads.jsonl", other)
    found = find_records("net", parse_target(skylake, 4), roots=[tmp_path])
    assert found.records == (own, level)
    assert found.sources == (0, 1)
    assert "1 made for the core's x86-64 level" in found.describe()
    alone = find_records("net", parse_target("x86-64-v3", 4), roots=[tmp_path])
    assert (alone.records, alone.lent) == ((level,), 0)


def test_records_for_another_core_and_broken_lines_are_counted(tmp_path):
    path = tmp_path / "r.jsonl"
    a53 = replace(RECORD, target={**TARGET, "mcpu": "cortex-a53"})
    write(path, RECORD, a53, timed(1e-3, 1))
    path.write_text("rubbish\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    found = find_records("net", A72, [path], roots=[])
    assert [record.threads for record in found.records] == [4, 1]
    assert found.foreign == 1
    assert f"1 unreadable lines skipped (first: {path}:1: not JSON" in found.describe()
    assert "1 for another core left out" in found.describe()


@pytest.mark.parametrize("text", ["", "rubbish\n", '{"a": 1}\n[]\n'])
def test_a_given_file_without_any_record_is_an_error(text, tmp_path):
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "r.jsonl"
    path.write_text(text, encoding="utf-8")
    for given in (path, tmp_path / "d"):
        with pytest.raises(RecordsError, match=r"no line of .* is a tuning record") as caught:
            find_records("net", A72, [given], roots=[])
        assert (f"{path}:1: " in str(caught.value)) == bool(text)
        assert caught.value.hint
    # Found by ourselves, it is counted and passed over.
    own = tmp_path / "logs" / "net" / "cortex-a72" / "measured"
    own.mkdir(parents=True)
    (own / "4-threads.jsonl").write_text(text, encoding="utf-8")
    assert find_records("net", A72, roots=[tmp_path / "logs"]).records == ()


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_path_that_holds_no_records_is_an_error(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordsError, match=what) as caught:
        find_records("net", A72, [tmp_path / what], roots=[])
    assert caught.value.hint


def test_the_records_of_a_wheel_lie_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site" / "tvmattend"
    (package / "tuning_logs").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr("tvmattend.__file__", str(package / "__init__.py"))
    assert shipped_root() == package / "tuning_logs"
    (package / "tuning_logs").rmdir()
    (tmp_path / "site" / "tuning_logs").mkdir()
    assert shipped_root() is None, "site-packages/tuning_logs is not ours"
    (tmp_path / "site" / "pyproject.toml").touch()
    assert shipped_root() == tmp_path / "site" / "tuning_logs"


def test_reading_records_loads_neither_tvm_nor_torch():
    code = (
        "import sys; import tvmattend.tuning.records as r;"
        "from tvmattend.target import parse_target;"
        "r.find_records('attendnext', parse_target('cortex-a72'));"
        "sys.exit(any(name in sys.modules for name in ('tvm', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0


def test_what_ships_is_readable_honest_and_not_emulated():
    root = shipped_root()
    assert root is not None
    paths = list(root.rglob("*.jsonl"))
    assert list(root.glob("attendnext/*/measured/*-threads.jsonl"))
    for path in paths:
        model, core, origin, name = path.relative_to(root).parts
        records, faults = read_records(path)
        assert not faults, path
        assert records, f"{path} holds nothing"
        assert origin != "emulated", f"{path}: emulated times never ship"
        for record in records:
            assert record.origin == origin
            assert record.machine, f"{path}: a record must say which machine or model"
            assert name == f"{record.threads}-threads.jsonl"
            assert record.is_for(parse_target(dict(record.target)))
            assert parse_target(dict(record.target)).name == core
        assert path.stat().st_size < 1_000_000, f"{path}: prune before shipping"
        assert model


@cache
def shipped_network(name):
    """An imported network; importing is most of the next test's time."""
    from tvmattend.frontend import import_model

    return import_model(name)


def test_what_ships_is_for_the_kernels_of_today():
    """A change to a network, a fusion rule or a design space makes records stale: noticed here."""
    from tvmattend.transform import lower
    from tvmattend.tuning.tasks import extract_tasks

    root = shipped_root()
    assert root is not None
    # A space has defaults for a number of threads, and of a fused kernel's only their neighbours.
    shipped = {}  # (network, core, file) -> its records
    for path in root.rglob("*.jsonl"):
        model, core, _, name = path.relative_to(root).parts
        shipped[model, core, name] = read_records(path)[0]
    assert any(model == "attendnext" for model, _, _ in shipped)
    for (model, core, _), records in shipped.items():
        target = parse_target(dict(records[0].target))
        lowered = lower(shipped_network(model).ir_module, target)
        tasks = {task.key: task for task in extract_tasks(lowered, target)}
        for record in records:
            where = f"{model} for {core}, {record.threads} threads: {record.task}"
            assert record.key in tasks, f"{where} is no kernel of today's lowering"
            space = tasks[record.key].space
            assert record.kernel == space.kernel, where
            assert space.accepts(record.point), f"{where}: {record.point} left the design space"


def test_what_ships_for_a_level_is_for_the_kernels_of_its_cores(tmp_path, monkeypatch):
    from tvmattend.transform import lower
    from tvmattend.tuning.tasks import extract_tasks

    monkeypatch.chdir(tmp_path)
    for core in ("skylake", "skylake-avx512", "znver4"):
        spec = parse_target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={core}", 1)
        records = find_records("attendnext", spec)
        tasks = extract_tasks(lower(shipped_network("attendnext").ir_module, spec), spec)
        assert all(records.best(task.key, 1, task.space.accepts) for task in tasks), core
