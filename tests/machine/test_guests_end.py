# SPDX-License-Identifier: Apache-2.0
"""Guests that have many threads, no room, no successor or no parent: told, and nothing is left."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest
from guest_sources import STATIC, compiled

from tvmattend.cli.main import main
from tvmattend.errors import InputError, StorageError
from tvmattend.machine.estimate import estimate
from tvmattend.machine.parameters import SHIPPED
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import THREADS
from tvmattend.machine.tracing import ProgramError, Settings, trace

pytestmark = pytest.mark.emulated

GUEST = r"""
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static float data[64][4096];
static pthread_barrier_t all;
static long lazy; /* so many threads have nothing to do */
__attribute__((noinline)) void work(volatile float *mine) {
    for (int round = 0; round < 20; round++)
        for (int at = 0; at < 4096; at++) mine[at] += round;
}
static void *run(void *mine) {
    pthread_barrier_wait(&all); /* so that each is a thread of its own */
    if ((float *)mine >= data[lazy]) work(mine);
    pthread_barrier_wait(&all);
    return 0;
}
int main(int argc, char **argv) {
    if (!strcmp(argv[1], "become")) execl(argv[2], argv[2], (char *)0);
    if (!strcmp(argv[1], "half")) return write(1, "half a line", 11) == 11 ? 3 : 4;
    if (!strcmp(argv[1], "parent")) {
        if (!fork()) work(data[0]), _exit(0);
        wait(0);
        return 0;
    }
    if (!strcmp(argv[1], "crash")) *(volatile int *)8 = 1;
    if (!strcmp(argv[1], "sleep")) for (;;) sleep(100);
    int count = atoi(argv[1]);
    if (argc > 2) lazy = atoi(argv[2]);
    pthread_t ids[64];
    pthread_barrier_init(&all, 0, count);
    for (int i = 1; i < count; i++) pthread_create(&ids[i], 0, run, data[i]);
    run(data[0]);
    for (int i = 1; i < count; i++) pthread_join(ids[i], 0);
    return 0;
}
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory) -> str:
    return compiled(tmp_path_factory.mktemp("guest"), GUEST, *STATIC)


def work_of(run) -> dict[int, int]:
    """Executions of the innermost loop's block, by record."""
    return max(run.blocks.values(), key=lambda block: sum(block.counts.values())).counts


@pytest.mark.parametrize("threads", [8, 9, 16])
def test_threads_beyond_the_records_share_one_and_none_is_lost(guest, threads):
    notes: list[str] = []
    # Few and short windows: what is sampled is thrown away often, in every thread.
    settings = Settings(markers=False, window=16, most=8)
    run, _ = trace([guest, str(threads)], settings, None, notes.append)
    alone = run.blocks and work_of(run)[1]
    assert alone > 20 * 4096 / 8  # unrolled or not
    crowd = max(0, threads - THREADS)
    # Counted to the last: not one of the threads' increments is lost.
    assert work_of(run).get(THREADS, 0) == crowd * alone
    assert run.threads == tuple(range(THREADS))
    assert run.crowd == (threads if crowd else 0)
    told = [note for note in notes if "share a record" in note]
    assert len(told) == (1 if crowd else 0)
    assert all(f"note: {threads} threads: those beyond 8" in note for note in told)
    # The sum of many threads is nobody's time.
    whole = estimate(Program(run), SHIPPED, 4).whole
    assert whole.cycles < 20 * 4096 * 30


@pytest.mark.parametrize("threads", [8, 9])
def test_json_says_what_is_rough(guest, threads, capsys):
    with pytest.raises(SystemExit) as left:
        main(["estimate", "--exec", "--json", "--", guest, str(threads)])
    assert left.value.code == 0
    said = capsys.readouterr()
    notes = json.loads(said.out)["notes"]
    assert [note for note in notes if note not in said.err] == []
    assert [note.split(":")[1].strip() for note in notes] == ["9 threads"] * (threads - 8)


def test_what_a_child_does_is_not_counted_and_said_so(guest):
    told = []
    run, _ = trace([guest, "parent"], Settings(markers=False), None, told.append)
    assert run.children == 1
    assert [note for note in told if note.startswith("note: what it started (1 process) is not")]
    assert run.instructions() < 4096 * 20, "the child's loop alone is more"
    alone, _ = trace([guest, "1"], Settings(markers=False), None, told.append)
    assert alone.children == 0
    assert alone.instructions() > 4096 * 20


def test_an_error_begins_a_line_of_its_own(guest, capsys):
    with pytest.raises(SystemExit) as left:
        main(["estimate", "--exec", "--", guest, "half"])
    assert left.value.code == 3
    lines = capsys.readouterr().err.splitlines()
    place = lines.index("half a line")
    assert lines[place + 1].startswith("error: ")


def test_work_in_threads_without_a_record_is_refused(guest, place):
    with pytest.raises(InputError, match=r"of 12 threads, those beyond 8 did most") as refused:
        trace([guest, "12", "8"], Settings(markers=False))
    assert "at most 8 threads" in refused.value.hint
    assert list(place.iterdir()) == []


def test_many_threads_that_did_more_together_than_the_first_eight_are_refused(guest):
    with pytest.raises(InputError, match=r"of 24 threads, those beyond 8 did most"):
        trace([guest, "24"], Settings(markers=False))


def test_a_program_that_becomes_another_is_refused(guest, place):
    with pytest.raises(InputError, match=r"left no trace: it replaced itself .*exec"):
        trace([guest, "become", "/bin/true"], Settings())
    assert list(place.iterdir()) == []


def test_a_limit_on_files_is_no_fault_of_the_program(guest, place):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"trace of .* has no room: .*File too large") as no:
            trace([guest, "1"], Settings(markers=False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ulimit -f" in no.value.hint
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("says", ["a72_plugin: cannot write: errno 28", "whatever"])
def test_a_full_disk_is_named(guest, place, tmp_path, monkeypatch, says):
    qemu = tmp_path / "qemu-aarch64"
    qemu.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    qemu.chmod(0o755)
    monkeypatch.setattr("tvmattend.machine.tracing.find_qemu", lambda: str(qemu))
    full = StorageError(f"no space left in `{place}`", "free some space there, or set TMPDIR")
    monkeypatch.setattr("tvmattend.machine.tracing.no_room", lambda *_: full)
    with pytest.raises(StorageError, match=r"(?i)trace of .* has no room: .*no space left") as no:
        trace([guest, "1"], Settings())
    assert str(place) in str(no.value)
    assert "free some space" in no.value.hint


def test_a_crash_leaves_no_core(guest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    if limits[1] == 0:
        pytest.skip("cores are forbidden here for good")
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    try:
        with pytest.raises(ProgramError, match="was killed"):
            trace([guest, "crash"], Settings())
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert list(tmp_path.iterdir()) == []


def emulators(guest: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if guest in words and "qemu" in words[0] and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def awaited(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_however_an_estimate_is_ended_its_guest_ends_too(guest, place, number):
    command = [sys.executable, "-m", "tvmattend", "estimate", "--exec", "--", guest, "sleep"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        awaited(lambda: emulators(guest))
        if number == signal.SIGTERM:  # as `timeout` sends it: to the process, then to all
            process.send_signal(number)
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
    awaited(lambda: not emulators(guest), 10)
    if number == signal.SIGKILL:
        return
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert list(place.iterdir()) == []
