# SPDX-License-Identifier: Apache-2.0
"""The comparison itself, with runtimes made up for the test, each in its real worker process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tvmattend.bench.catalogue import OURS, Entry
from tvmattend.bench.comparison import Options, compare, relative_error
from tvmattend.bench.report import Absent, Comparison
from tvmattend.errors import BenchmarkError, InputError, ModelError
from tvmattend.frontend import ModelRequest
from tvmattend.target import parse_target

NETWORK = """
import torch

class Toy(torch.nn.Module):
    input_shape = (3, 8, 8)

    def forward(self, x):
        return 2 * x.mean((2, 3))

def make():
    return Toy()
"""

# The same in numpy: a worker starts in a tenth of a second without torch.
RIGHT = """
import os, sys
import numpy as np
from tvmattend.bench.runtime import timed

class Adapter:
    def __init__(self, setup): self.setup = setup
    def convert(self): (self.setup.directory / "made").write_text(str(os.getpid()))
    def prepare(self):
        print("chatter on standard output")
        assert int((self.setup.directory / "made").read_text()) != os.getpid()
    def version(self): return f"{len(os.sched_getaffinity(0))} cores"
    def feed(self, inputs): self.x = inputs[0]
    def run(self): self.y = 2 * self.x.mean((2, 3))
    def outputs(self): return [self.y]
    def time(self, count): return timed(self.run, count)
"""
VARIANTS = {
    "slow": """
import time
class Adapter(Base):
    def run(self):
        super().run()
        time.sleep(0.002)
""",
    "wrong": """
class Adapter(Base):
    def outputs(self): return [self.y * 1.002]
""",
    "constant": """
class Adapter(Base):
    first = None
    def outputs(self):
        Adapter.first = self.y if Adapter.first is None else Adapter.first
        return [Adapter.first]
""",
    "flat": """
class Adapter(Base):
    def outputs(self): return [self.y.ravel()]
""",
    "raises": """
class Adapter(Base):
    def convert(self): raise ValueError("no such operator\\nand a page of reasons")
""",
    "aborts": """
class Adapter(Base):
    def prepare(self):
        sys.stderr.write("a library's last words\\n")
        os.abort()
""",
    "dies_of_real_time": """
import signal
class Adapter(Base):
    def prepare(self): signal.raise_signal(signal.SIGRTMIN + 1)
""",
    "hangs_up": """
import time
class Adapter(Base):
    def prepare(self):
        os.close(int(sys.argv[1]))
        time.sleep(600)
""",
    "sleeper": """
import pathlib, time
class Adapter(Base):
    def convert(self):
        pathlib.Path("started.part").write_text(str(os.getpid()))
        os.rename("started.part", "started")
        time.sleep(600)
""",
    "lingers": """
import pathlib
class Adapter(Base):
    def prepare(self):
        pathlib.Path("lingers").write_text(str(os.getpid()))
        raise ValueError("cannot be loaded")
""",
    "witness": """
import pathlib
class Adapter(Base):
    def time(self, count):
        assert not pathlib.Path("/proc", pathlib.Path("lingers").read_text()).exists()
        return super().time(count)
""",
    "dies_later": """
class Adapter(Base):
    def time(self, count): os._exit(3)
""",
}


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Entry]:
    (tmp_path / "toy_network.py").write_text(NETWORK, encoding="utf-8")
    (tmp_path / "toy_right.py").write_text(RIGHT, encoding="utf-8")
    for name, text in VARIANTS.items():
        head = "import os, sys\nfrom toy_right import Adapter as Base\n"
        (tmp_path / f"toy_{name}.py").write_text(head + text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where the factory is imported from
    made = {name: Entry(name, f"toy_{name}") for name in VARIANTS}
    made["absent"] = Entry("absent", "toy_right", ("no_package_has_this_name",), "pip install it")
    made["no-peer"] = Entry("no-peer", "toy_right", peer=False)
    made[OURS] = Entry(OURS, "toy_right", peer=False)
    return made


def run(
    entries: Mapping[str, Entry],
    *against: str,
    rounds: int = 2,
    observer: Callable[[str], None] = lambda _: None,
) -> Comparison:
    options = Options(against=against, rounds=rounds, burst=0.01, settle=0.0, least=2)
    request = ModelRequest("toy_network:make")
    return compare(request, parse_target("host", 1), options, observer, entries)


def absent(comparison: Comparison, name: str) -> Absent:
    return next(entry for entry in comparison.absent if entry.runtime == name)


def test_timed_wrong_missing_and_failing_runtimes(entries: Mapping[str, Entry]) -> None:
    comparison = run(
        entries, "slow", "wrong", "constant", "flat", "absent", "raises", "aborts", "dies_later",
        "no-peer",
    )  # fmt: skip
    assert [result.runtime for result in comparison.results] == [OURS, "slow", "flat", "no-peer"]
    for result in comparison.results:
        assert result.max_rel_error < 1e-6
        assert len(result.timing.rounds) == 2
        assert min(len(times) for times in result.timing.rounds) >= 2
        # Bound to as many cores as there are threads, before anything was loaded.
        assert result.version == "1 cores"
    slow = comparison.results[1]
    assert slow.timing.least >= 0.002
    # A right answer in another shape is right; one that ignores its input is not.
    assert absent(comparison, "wrong").state == "wrong"
    assert absent(comparison, "wrong").max_rel_error == pytest.approx(0.002, rel=0.01)
    assert absent(comparison, "constant").state == "wrong"
    assert absent(comparison, "absent") == Absent("absent", "missing", "pip install it")
    assert absent(comparison, "raises").reason == "ValueError: no such operator"
    assert "SIGABRT" in absent(comparison, "aborts").reason
    assert "a library's last words" in absent(comparison, "aborts").reason
    assert "exit code 3" in absent(comparison, "dies_later").reason
    assert comparison.fastest_peer is not None
    assert comparison.fastest_peer.runtime == "flat"
    assert comparison.ratio is not None


def test_a_process_that_hangs_up_or_dies_of_an_unnamed_signal_is_left_out(
    entries: Mapping[str, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvmattend.bench.client._END_SECONDS", 0.5)
    comparison = run(entries, "hangs_up", "dies_of_real_time")
    assert "broke off in `prepare` and does not end" in absent(comparison, "hangs_up").reason
    died = f"died in `prepare` (signal {signal.SIGRTMIN + 1})"
    assert died in absent(comparison, "dies_of_real_time").reason


def test_nothing_but_ours_is_still_timed(entries: Mapping[str, Entry]) -> None:
    comparison = run(entries, "absent")
    assert [result.runtime for result in comparison.results] == [OURS]
    assert comparison.fastest_peer is None
    assert comparison.ratio is None
    assert any("nothing to compare with" in note for note in comparison.notes())


@pytest.mark.parametrize("broken", ["raises", "aborts", "dies_later", "wrong"])
def test_without_ours_there_is_no_comparison(entries: Mapping[str, Entry], broken: str) -> None:
    mine = {**entries, OURS: Entry(OURS, f"toy_{broken}", peer=False)}
    with pytest.raises(BenchmarkError):
        run(mine, "flat")


def test_a_wrong_answer_of_ours_ends_it_before_a_peer_is_converted(
    entries: Mapping[str, Entry],
) -> None:
    mine, said = {**entries, OURS: Entry(OURS, "toy_wrong", peer=False)}, []
    with pytest.raises(BenchmarkError, match=r"tvmattend's own output is off by 2\.0e-03"):
        run(mine, "flat", observer=said.append)
    assert said[-1] == f"loading {OURS}"


def test_unknown_runtime_stops_it_before_anything_starts(entries: Mapping[str, Entry]) -> None:
    with pytest.raises(BenchmarkError, match="`slwo`"):
        run(entries, "slow", "slwo")


def test_network_that_does_not_exist(entries: Mapping[str, Entry]) -> None:
    with pytest.raises(ModelError):
        compare(
            ModelRequest("attendnext_huge"), parse_target("host", 1), Options(against=()),
            entries=entries,
        )  # fmt: skip


def test_board_is_not_this_machine() -> None:
    foreign = "cortex-a72" if parse_target("host").arch == "x86_64" else "llvm -mcpu=x86-64-v3"
    with pytest.raises(InputError, match="not this machine"):
        compare(ModelRequest("attendnext_tiny"), parse_target(foreign, 1), Options(against=()))


@pytest.mark.parametrize(
    "options",
    [
        Options(threads=0),
        Options(threads=100_000),
        Options(rounds=0),
        Options(trials=-1),
        Options(cpus=(99_999,)),
        Options(cpus=(0, 1)),
    ],
)
def test_numbers_out_of_range(options: Options) -> None:
    with pytest.raises(InputError):
        options.check(sorted(os.sched_getaffinity(0)))


def test_tuning_tvm_needs_trials(entries: Mapping[str, Entry]) -> None:
    mine = {**entries, "tvm-default-tuned": Entry("tvm-default-tuned", "toy_right", peer=False)}
    with pytest.raises(BenchmarkError, match="number of trials"):
        run(mine, "tvm-default-tuned")


def test_relative_error() -> None:
    reference = np.array([[1.0, -4.0]], np.float32)
    assert relative_error([reference], [reference]) == 0.0
    assert relative_error([reference.ravel()], [reference]) == 0.0
    assert relative_error([reference + 0.04], [reference]) == pytest.approx(0.01)
    assert relative_error([reference[:, :1]], [reference]) == float("inf")
    assert relative_error([reference * np.nan], [reference]) == float("inf")
    assert relative_error([reference, reference], [reference]) == float("inf")


def test_worker_ends_with_a_parent_that_is_killed(
    entries: Mapping[str, Entry], tmp_path: Path
) -> None:
    # In the middle of a conversion, when it does not look at its pipe.
    del entries  # puts the made-up runtimes where a worker finds them
    script = f"""
from pathlib import Path
from tvmattend.bench.catalogue import Entry
from tvmattend.bench.client import Worker
Worker(Path({str(tmp_path / "log")!r})).call("convert", Entry("sleeper", "toy_sleeper"), None)
"""
    started = tmp_path / "started"
    roots = [str(Path(__file__).parents[2]), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as parent:
        waited = wait_until(started.is_file)
        parent.kill()
    assert waited
    worker = Path("/proc", started.read_text(encoding="ascii"), "cmdline")
    # Gone, or a zombie that nobody reaps, which has no command line any more.
    assert wait_until(lambda: not worker.is_file() or not worker.read_bytes())


def wait_until(reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.1)
    return reached()


def test_who_failed_takes_no_core_from_who_is_timed(entries: Mapping[str, Entry]) -> None:
    found = run(entries, "lingers", "witness", "wrong")
    assert found.timing("witness").median > 0, found.absent
    with pytest.raises(BenchmarkError, match=r"lingers was not timed: failed: .*cannot be loaded"):
        found.timing("lingers")
    with pytest.raises(BenchmarkError, match="wrong was not timed: wrong: "):
        found.timing("wrong")
