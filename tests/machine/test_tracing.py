# SPDX-License-Identifier: Apache-2.0
"""Programs under QEMU with the plugin: what is counted, what the caches do, what is refused."""

import json
import struct
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from guest_sources import STATIC, compiled

from tvmattend.cli.main import main
from tvmattend.errors import InputError, ToolMissingError
from tvmattend.machine.estimate import estimate
from tvmattend.machine.parameters import SHIPPED
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import read_trace
from tvmattend.machine.tracing import ProgramError, Settings, trace

PASSES = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static volatile float sink;
__attribute__((noinline)) void read_lines(const float *data, long bytes) {
    for (long at = 0; at < bytes / 4; at += 16) sink = data[at];
}
__attribute__((noinline)) void other_work(void) { for (int i = 0; i < 1000; i++) sink = i; }
int main(int argc, char **argv) {
    long bytes = atol(argv[1]);
    if (argc > 2 && !strcmp(argv[2], "crash")) *(volatile int *)8 = 1;
    if (argc > 2 && !strcmp(argv[2], "fail")) { write(2, "no luck\n", 8); return 3; }
    float *data = aligned_alloc(4096, bytes);
    memset(data, 1, bytes);
    int mark = argc > 2 ? 0 : 0x0A720000;
    close(mark ? mark + 1 : -1);
    read_lines(data, bytes);
    close(mark ? mark + 2 : -1);
    read_lines(data, bytes);
    close(mark ? mark + 3 : -1);
    other_work();
    return 0;
}
"""

pytestmark = pytest.mark.emulated


@pytest.fixture(scope="module")
def passes(tmp_path_factory) -> str:
    return compiled(tmp_path_factory.mktemp("passes"), PASSES, *STATIC)


def counted(program: str, kilobytes: int, settings: Settings = Settings()):  # noqa: B008
    return trace([program, str(kilobytes << 10)], settings)[0]


def test_what_fits_l1_does_not_miss(passes):
    events = counted(passes, 8).events()
    assert events["accesses"] >= 128
    assert events["l2_stream"] + events["l2_lone"] + events["dram_stream"] <= 4


def test_what_fits_l2_misses_l1_once_a_line_and_is_covered(passes):
    events = counted(passes, 256).events()
    assert events["l2_stream"] + events["l2_lone"] == pytest.approx(4096, rel=0.02)
    assert events["l2_stream"] > 20 * events["l2_lone"]
    assert events["dram_stream"] + events["dram_lone"] < 40


def test_what_fits_neither_comes_from_dram(passes):
    events = counted(passes, 8192).events()
    assert events["dram_stream"] + events["dram_lone"] == pytest.approx(131072, rel=0.02)


def windows(run) -> list[int]:
    """Sizes of the samples, in blocks."""
    found, at = [], 0
    words = struct.unpack(f"<{len(run.samples) // 4}I", run.samples)
    while at < len(words):
        inside = words[at + 3 : at + 3 + words[at + 2]]
        found.append(sum(word >> 31 for word in inside))
        at += 3 + words[at + 2]
    return found


def test_however_long_a_program_is_it_leaves_as_many_samples(passes):
    short = windows(counted(passes, 64, Settings(window=32, most=64)))
    long = windows(counted(passes, 8192, Settings(window=32, most=64)))
    assert sum(short) >= 1000  # all of its thousand blocks
    assert 32 <= len(long) <= 64
    assert all(blocks == 32 for blocks in long[:-1])
    assert not counted(passes, 64, Settings(most=0)).samples
    assert windows(counted(passes, 64, Settings(window=32, most=1)))


def test_only_what_is_marked_counts(passes):
    run = counted(passes, 64)
    assert run.markers == 3
    loop = max(run.blocks.values(), key=lambda block: block.counts.get(0, 0))
    assert loop.counts[0] == pytest.approx(1024, abs=2)
    names = {part.name for part in estimate(Program(run), SHIPPED).parts}
    assert "read_lines" in names
    assert "other_work" not in names


def test_without_caches_nothing_is_accessed_but_blocks_are_the_same(passes):
    with_caches, without = counted(passes, 64), counted(passes, 64, Settings(caches=False))
    assert sum(without.events().values()) == 0
    assert without.instructions() == with_caches.instructions()


def test_a_longer_stride_through_memory_takes_longer(passes):
    fits, streams = (
        estimate(Program(counted(passes, size)), SHIPPED).whole for size in (256, 8192)
    )
    # 32 times the lines, each from DRAM.
    assert streams.cycles > 1.5 * 32 * fits.cycles
    assert streams.bound == "DRAM"


def test_json_of_a_program(passes, capsys):
    with pytest.raises(SystemExit) as left:
        main(["estimate", "--exec", "--json", "--clock", "1.5GHz", "--", passes, "65536"])
    assert left.value.code == 0
    data = json.loads(capsys.readouterr().out)
    assert data["clock_hz"] == 1.5e9
    assert data["ms"] == pytest.approx(data["cycles"] / 1.5e6, rel=1e-3)
    assert {"threads", "instructions", "fma_utilisation", "l1d_misses", "l2_misses"} <= set(data)
    assert 0 < data["model_error"] < 0.2
    assert data["kernels"][0]["name"] == "read_lines"


def test_a_baseline_is_subtracted(passes, capsys):
    command = ["--exec", "--json", "--baseline", f"{passes} 65536 x", "--", passes, "262144", "x"]
    with pytest.raises(SystemExit) as left:
        main(["estimate", *command])
    assert left.value.code == 0
    less = json.loads(capsys.readouterr().out)
    assert all(part["name"] != "other_work" for part in less["kernels"])
    reads = next(part for part in less["kernels"] if part["name"] == "read_lines")
    assert reads["instructions"] > 2 * 3 * 3072  # 3072 more lines, twice


def test_a_crash_and_a_failure_are_told_with_their_output(passes, capfd):
    with pytest.raises(ProgramError, match="was killed") as crashed:
        trace([passes, "65536", "crash"], Settings())
    assert crashed.value.exit_code == 139
    with pytest.raises(ProgramError, match="exit code 3") as failed:
        trace([passes, "65536", "fail"], Settings())
    assert failed.value.exit_code == 3
    assert "no luck" in capfd.readouterr().err


def test_other_programs_are_refused(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    for program, reason in (
        (sys.executable, "x86-64"),
        (str(script), "script"),
        ("/no", "no program"),
    ):
        with pytest.raises(InputError, match=reason):
            trace([program], Settings())


def test_nothing_is_left_behind(passes, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    counted(passes, 8)
    with pytest.raises(ProgramError):
        trace([passes, "65536", "fail"], Settings())
    assert list(tmp_path.iterdir()) == []


def test_a_qemu_without_plugins_is_named(monkeypatch, passes, tmp_path):
    old = tmp_path / "qemu-aarch64"
    old.write_text("#!/bin/sh\necho \"qemu: unknown option 'plugin'\" >&2; exit 1\n")
    old.chmod(0o755)
    monkeypatch.setattr("tvmattend.machine.tracing.find_qemu", lambda: str(old))
    with pytest.raises(ToolMissingError, match="without plugins"):
        trace([passes, "65536"], Settings())


def test_a_trace_that_ends_early_is_refused(tmp_path):
    path = tmp_path / "trace"
    path.write_text("a72-trace 1\nbase 0\nmarkers 0\n")
    with pytest.raises(ToolMissingError, match="ends early"):
        read_trace(path)


def test_bad_command_lines():
    from tvmattend.cli.estimate import command

    runner = CliRunner()
    for words in ([], ["--exec"], ["a", "b"], ["x", "--clock", "9GHz"], ["x", "--threads", "3"]):
        assert runner.invoke(command, words).exit_code == 2


def test_the_plugin_file_is_found_beside_the_package():
    from tvmattend.machine.native import native

    found = native()
    assert Path(found.plugin).is_file()
    assert Path(found.core).is_file()
