# SPDX-License-Identifier: Apache-2.0
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import FAILED, RECORD, TARGET

from tvmattend.errors import RecordsError, StorageError, printable
from tvmattend.tuning.record import one_line, parse_record
from tvmattend.tuning.record_file import (
    RecordFile,
    prune,
    prune_files,
    read_records,
    record_path,
)


def test_a_record_survives_its_line():
    for record in (RECORD, FAILED):
        line = record.to_line()
        assert line.endswith("\n")
        assert line.count("\n") == 1
        assert parse_record(line) == record


def test_the_median_counts_and_a_failure_is_infinitely_slow():
    assert RECORD.seconds == pytest.approx(0.0012)
    assert RECORD.threads == 4
    assert FAILED.seconds == float("inf")


def test_not_a_number_is_never_written():
    with pytest.raises(ValueError, match="Out of range"):
        replace(RECORD, run_secs=(float("nan"),)).to_line()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "schema 2; this tvmattend reads 1"),
        ({"schema": None}, "schema None"),
        ({"status": "fine"}, "unknown status 'fine'"),
        ({"origin": "guessed"}, "unknown origin 'guessed'"),
        ({"run_secs": []}, "status 'ok' with 0 times"),
        ({"run_secs": [0.0]}, "not a time"),
        ({"run_secs": [True]}, "not a time"),
        ({"run_secs": "1.0"}, "`run_secs` is missing or of a wrong type"),
        ({"point": {"tile": 1.5}}, "not an integer"),
        ({"key": 5}, "`key` is missing or of a wrong type"),
        ({"target": {"kind": "llvm"}}, "no num-cores"),
        ({"seed": True}, "`seed` is missing or of a wrong type"),
    ],
)
def test_a_line_that_lies_is_refused(change, reason):
    fields = {**json.loads(RECORD.to_line()), **change}
    with pytest.raises(ValueError, match=reason):
        parse_record(json.dumps(fields))


def test_fields_that_a_later_minor_version_adds_are_passed_over():
    fields = {**json.loads(RECORD.to_line()), "humidity": 0.4}
    assert parse_record(json.dumps(fields)) == RECORD


def test_appending_makes_the_directories_and_keeps_what_is_there(tmp_path):
    file = RecordFile(record_path(tmp_path / "net" / "cortex-a72", "measured", 4))
    file.append(RECORD)
    file.append(FAILED)
    assert file.path == tmp_path / "net/cortex-a72/measured/4-threads.jsonl"
    assert read_records(file.path) == ([RECORD, FAILED], [])


def test_a_torn_last_line_is_skipped_and_the_next_record_starts_on_its_own_line(tmp_path):
    path = tmp_path / "r.jsonl"
    torn = FAILED.to_line()[:57]
    path.write_text(RECORD.to_line() + torn, encoding="utf-8")
    before = path.read_bytes()
    records, faults = read_records(path)
    assert records == [RECORD]
    assert [(fault.line, "not JSON" in fault.reason) for fault in faults] == [(2, True)]
    assert path.read_bytes() == before, "reading must not touch the file"
    RecordFile(path).append(FAILED)
    assert path.read_text(encoding="utf-8") == RECORD.to_line() + torn + "\n" + FAILED.to_line()
    records, faults = read_records(path)
    assert records == [RECORD, FAILED]
    assert [fault.line for fault in faults] == [2]


def test_a_last_line_that_only_lacks_its_newline_is_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(RECORD.to_line().rstrip("\n"), encoding="utf-8")
    assert read_records(path) == ([RECORD], [])
    RecordFile(path).append(FAILED)
    assert read_records(path) == ([RECORD, FAILED], [])


def test_corrupt_lines_in_the_middle_cost_only_themselves(tmp_path):
    path = tmp_path / "r.jsonl"
    newer = RECORD.to_line().replace('"schema":1', '"schema":7')
    foreign = '{"i": [["[\\"llvm\\"]"]], "v": "v0.6"}\n'  # an AutoScheduler log
    path.write_bytes(
        RECORD.to_line().encode()
        + b"\x00\xff\xfe garbage\n"
        + newer.encode()
        + foreign.encode()
        + b"[1, 2]\n\n"
        + FAILED.to_line().encode()
    )
    records, faults = read_records(path)
    assert records == [RECORD, FAILED]
    assert [fault.line for fault in faults] == [2, 3, 4, 5]
    assert "schema 7" in faults[1].reason
    assert str(faults[1]).startswith(f"{path}:3: ")


@given(st.binary(max_size=200))
def test_no_bytes_at_all_stop_the_reader(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "r.jsonl"
    path.write_bytes(RECORD.to_line().encode() + noise + b"\n" + FAILED.to_line().encode())
    records, _ = read_records(path)
    assert records[0] == RECORD
    assert records[-1] == FAILED


def test_a_file_that_cannot_be_read_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(RecordsError, match="cannot read the tuning records"):
        read_records(tmp_path / "missing.jsonl")
    with pytest.raises(RecordsError, match="Is a directory"):
        read_records(tmp_path)


def test_a_full_disk_takes_no_part_of_a_line(tmp_path, monkeypatch):
    file = RecordFile(tmp_path / "r.jsonl")
    file.append(RECORD)
    write = os.write

    def half(handle, data):
        if len(data) > 100:
            return write(handle, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StorageError, match="No space left on device"):
        file.append(FAILED)
    monkeypatch.undo()
    assert file.path.read_text(encoding="utf-8") == RECORD.to_line()


def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "plain").write_text("a file, not a directory", encoding="utf-8")
    with pytest.raises(RecordsError, match=r"cannot write .*: Not a directory") as caught:
        RecordFile(tmp_path / "plain" / "r.jsonl").append(RECORD)
    assert "--output" in caught.value.hint


_APPEND_FOREVER = """
import sys
from pathlib import Path
from tvmattend.tuning.record import parse_record
from tvmattend.tuning.record_file import RecordFile
record = parse_record(sys.argv[2])
file = RecordFile(Path(sys.argv[1]))
while True:
    file.append(record)
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_run_killed_while_it_appends_leaves_whole_lines(tmp_path, blow):
    path = tmp_path / "r.jsonl"
    long = replace(RECORD, trace=[["Annotate", "x" * 20000]])
    command = [sys.executable, "-c", _APPEND_FOREVER, str(path), long.to_line()]
    home = Path(__file__).parents[2]
    for round_ in range(3):
        with subprocess.Popen(command, cwd=home, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 20
            before = path.stat().st_size if path.exists() else 0
            while not path.exists() or path.stat().st_size < before + 200000:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(blow)
        records, faults = read_records(path)
        assert len(faults) <= round_ + 1 if blow == signal.SIGKILL else not faults
        assert all(record == long for record in records)
        assert len(records) > 8 * (round_ + 1)


def test_two_runs_may_share_a_file(tmp_path):
    path = tmp_path / "r.jsonl"
    command = [sys.executable, "-c", _APPEND_FOREVER, str(path), RECORD.to_line()]
    home = Path(__file__).parents[2]
    both = [subprocess.Popen(command, cwd=home, stderr=subprocess.DEVNULL) for _ in range(2)]
    deadline = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < 100000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in both:
        process.send_signal(signal.SIGINT)
        process.wait()
    records, faults = read_records(path)
    assert not faults
    assert all(record == RECORD for record in records)


def test_the_last_line_of_an_error_says_it():
    assert one_line("Traceback ...\n  File x\nValueError: no such block\n\n") == (
        "ValueError: no such block"
    )
    # As TVM's worker gives it back, in an error of ours, which is one line.
    flat = printable(
        "Traceback (most recent call last):\n"
        '  File "/x/tvm/exec/popen_worker.py", line 89, in main\n'
        "    result = fn(*args, **kwargs)\n" + 9 * '  File "/x", line 1, in y\n    z()\n' + "\n"
        "tvmattend.errors.CompileError: linking kernel.so failed (exit code 1): ld: no input\n"
    )
    assert one_line(flat) == (
        "tvmattend.errors.CompileError: linking kernel.so failed (exit code 1): ld: no input"
    )
    flat = (
        "linking kernel.so for x86_64-linux-gnu failed (exit code 1): Traceback (most recent call "
        'last): File "/usr/lib/ziglang/__main__.py", line 9, in <module>; '
        "sys.exit(subprocess.call(argv, env={'PYTHONPATH': '/a/path'}));" + " more" * 90 + "; "
    )
    assert one_line(flat + "OSError: [Errno 28] No space left on device") == (
        "linking kernel.so for x86_64-linux-gnu failed (exit code 1): "
        "OSError: [Errno 28] No space left on device"
    )
    assert one_line("Traceback (most recent call last): File x raise y MemoryError") == (
        "MemoryError"
    )
    assert one_line("") == "no message"
    assert len(one_line("x" * 1000)) == 300


def _timed(point, seconds, **change):
    return replace(RECORD, point={"tile": point}, run_secs=(seconds,), **change)


def test_pruning_keeps_the_best_of_each_kernel_and_origin():
    records = [
        _timed(1, 3e-3),
        _timed(2, 1e-3),
        _timed(2, 2e-3),  # the same point again
        FAILED,
        _timed(3, 2.5e-3),
        _timed(1, 9e-3, origin="estimated"),
        _timed(1, 5e-3, key="1111"),
        _timed(1, 7e-3, target={**TARGET, "num-cores": 1}),
    ]
    assert prune(records, 2) == [records[index] for index in (1, 4, 5, 6, 7)]
    assert prune(records, 1) == [records[index] for index in (1, 5, 6, 7)]
    assert prune(records, 0) == []


def test_pruning_a_file_replaces_it_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.jsonl"
    for record in (_timed(1, 3e-3), _timed(2, 1e-3), FAILED):
        RecordFile(path).append(record)
    assert prune_files([path], 1) == [(3, 1)]
    assert read_records(path) == ([_timed(2, 1e-3)], [])
    assert [each.name for each in tmp_path.iterdir()] == ["r.jsonl"]
    path.write_text(path.read_text(encoding="utf-8") + "torn", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(RecordsError, match="pruning would lose 1 unreadable line"):
        prune_files([path], 1)
    assert path.read_bytes() == before


def test_pruning_through_a_link_keeps_the_link_and_who_may_write(tmp_path):
    path, link = tmp_path / "r.jsonl", tmp_path / "link.jsonl"
    for record in (_timed(1, 3e-3), _timed(2, 1e-3)):
        RecordFile(path).append(record)
    path.chmod(0o664)
    link.symlink_to(path)
    assert prune_files([link], 1) == [(2, 1)]
    assert link.is_symlink()
    assert read_records(path) == ([_timed(2, 1e-3)], [])
    assert path.stat().st_mode & 0o777 == 0o664


def test_pruning_waits_for_nobody_and_changes_nothing_while_a_run_has_one_of_the_files(tmp_path):
    free, taken = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (free, taken):
        for record in (_timed(1, 3e-3), _timed(2, 1e-3)):
            RecordFile(path).append(record)
    with RecordFile(taken).claimed():
        with pytest.raises(RecordsError, match=f"process {os.getpid()}.*b.jsonl"):
            prune_files([free, taken], 1)
        assert [len(read_records(path)[0]) for path in (free, taken)] == [2, 2]
    assert prune_files([free, taken], 1) == [(2, 1), (2, 1)]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


_CLAIM = """
import sys, time
from pathlib import Path
from tvmattend.tuning.record_file import RecordFile
with RecordFile(Path(sys.argv[1])).claimed():
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_a_claim_is_of_the_file_and_ends_with_its_process(tmp_path):
    """Whatever name it is reached by, and whatever cache the other run has."""
    path = tmp_path / "logs" / "r.jsonl"
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    command = [sys.executable, "-c", _CLAIM, str(path)]
    cache = {**os.environ, "TVMATTEND_CACHE": str(tmp_path / "cache")}
    home = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=home, env=cache, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"claimed\n"
        for name in (path, link / "r.jsonl"):
            with (
                pytest.raises(RecordsError, match=rf"another tuning run \(process {process.pid}\)"),
                RecordFile(name).claimed(),
            ):
                pass
        process.send_signal(signal.SIGKILL)
    with RecordFile(path).claimed():
        RecordFile(path).append(RECORD)
    assert sorted(each.name for each in path.parent.iterdir()) == ["r.jsonl"]
    assert not (tmp_path / "cache").exists()


def test_a_claim_leaves_nothing_and_cannot_be_had_twice(tmp_path):
    file = RecordFile(tmp_path / "a" / "r.jsonl")
    with file.claimed():
        with pytest.raises(RecordsError), file.claimed():
            pass
        with pytest.raises(RecordsError), file.claimed():
            pass
    assert not list(tmp_path.iterdir())


def test_a_claim_that_is_given_up_while_another_waits_for_it_is_not_theirs(tmp_path, monkeypatch):
    """They opened the file that goes: a third would make, and lock, another of that name."""
    file = RecordFile(tmp_path / "r.jsonl")
    flock = fcntl.flock
    calls = []

    def late(handle, operation):
        if not calls:
            (tmp_path / ".r.jsonl.lock").unlink()
        calls.append(handle)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with file.claimed():
        monkeypatch.undo()
        with pytest.raises(RecordsError), file.claimed():
            pass
    assert len(calls) == 2


def test_a_full_disk_at_the_first_record_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left on device"):
        RecordFile(tmp_path / "a" / "r.jsonl").append(RECORD)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_asking_whether_records_can_be_kept_leaves_nothing(tmp_path):
    file = RecordFile(tmp_path / "a" / "b" / "r.jsonl")
    file.check_writable()
    assert not list(tmp_path.iterdir())
    file.append(RECORD)
    file.check_writable()
    assert file.path.read_text(encoding="utf-8") == RECORD.to_line()


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("a file", RecordsError, "Not a directory"),
        ("a directory", RecordsError, "Is a directory"),
        ("no such place", RecordsError, "No such file or directory"),
        ("full", StorageError, "0 MB free"),
        ("read-only", StorageError, "Read-only file system"),
    ],
)
def test_a_place_that_takes_no_records_is_known_before(what, error, says, tmp_path, monkeypatch):
    place = tmp_path / "logs"
    if what == "a file":
        place.write_text("a file, not a directory", encoding="utf-8")
        place /= "deeper"
    elif what == "a directory":
        (place / "r.jsonl").mkdir(parents=True)
    elif what == "no such place":
        place = Path("/proc/x")
    elif what == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=0)
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    else:
        place.mkdir()

        def refuse(*_):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "open", refuse)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=says) as caught:
        RecordFile(place / "r.jsonl").check_writable()
    assert "--output" in caught.value.hint
    assert ("space" in caught.value.hint) == (what == "full")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_goes_while_a_run_waits_for_it_loses_no_record(tmp_path, monkeypatch):
    """The other run met a full disk and took its empty file back: we open a new one."""
    file = RecordFile(tmp_path / "r.jsonl")
    flock = fcntl.flock
    waits = []

    def wait(handle, operation):
        if not waits:
            file.path.unlink()
        waits.append(handle)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", wait)
    file.append(RECORD)
    assert len(waits) == 2
    assert file.path.read_text(encoding="utf-8") == RECORD.to_line()
