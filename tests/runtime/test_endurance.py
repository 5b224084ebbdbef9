# SPDX-License-Identifier: Apache-2.0
"""Many threads and many inferences: right numbers, and a process that does not grow.

The long version is `pytest -m long tests/runtime/test_endurance.py`.
"""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tvmattend
from tvmattend.runtime import Network, load

FORMATS = ("vm", "standalone")
THREADS = 8
# Allocators keep some of what they got; what leaks in every call is more than that soon.
_GROWTH_BYTES = 512 << 10


@pytest.fixture(scope="module")
def bundles(signed_tiny: Path) -> dict[str, Path]:
    return {kind: signed_tiny / kind for kind in FORMATS}


def work(nets: list[Network], count: int) -> list[str]:
    """Call from eight threads at once, each with inputs of its own; give what was wrong."""
    random = np.random.default_rng(11)
    shape = nets[0].inputs[0].shape
    inputs = [random.standard_normal(shape).astype("float32") for _ in range(2 * THREADS)]
    alone = [np.asarray(nets[0](x)).copy() for x in inputs]
    assert len({y.tobytes() for y in alone}) == len(alone), "they tell the inputs apart"
    wrong: list[str] = []
    start = threading.Barrier(THREADS)

    def caller(number: int) -> None:
        net = nets[number % len(nets)]
        mine = (number, number + THREADS)
        try:
            start.wait()
            for turn in range(count):
                which = mine[turn % 2]
                if not np.array_equal(np.asarray(net(inputs[which])), alone[which]):
                    wrong.append(f"thread {number}, call {turn}")
        except Exception as error:  # noqa: BLE001  (a thread's error would be lost)
            wrong.append(f"thread {number}: {error!r}")

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(THREADS)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    return wrong


@pytest.mark.parametrize(
    "count", [150, pytest.param(1000, marks=(pytest.mark.long, pytest.mark.timeout(3600)))]
)
@pytest.mark.parametrize("networks", [1, THREADS])
@pytest.mark.parametrize("kind", FORMATS)
def test_eight_threads_get_their_own_numbers(
    bundles: dict[str, Path], kind: str, networks: int, count: int
) -> None:
    """On one loaded network, whose calls wait for one another, and on one for each thread."""
    assert work([load(bundles[kind]) for _ in range(networks)], count) == []


def test_a_number_that_is_not_its_own_is_noticed(bundles: dict[str, Path]) -> None:
    """The control: a network that now and then answers a caller with another's result."""
    net = load(bundles["vm"])
    results: list[np.ndarray] = []

    class Muddled:
        inputs = net.inputs

        def __call__(self, x: np.ndarray) -> np.ndarray:
            results.append(np.asarray(net(x)))
            return results[-1] if len(results) % 50 else results[-40]

    assert work([Muddled()], 20)  # type: ignore[list-item]


_GROW = """
import ctypes, gc, sys
sys.modules["torch"] = None
import numpy as np
from tvmattend.runtime import load

kind, count, leak = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "leak"
key = sys.argv[1] + "/../key.pub" if kind == "signed" else None
net = load(sys.argv[1], threads=1, require_signature=key)
(x,), (wanted,) = net.golden()[0]
kept = []

def used():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # Pages that only this process has: code and weights that are read from the file are no growth.
    with open("/proc/self/smaps_rollup") as file:
        rows = dict(line.split(":") for line in list(file)[1:])
    return int(rows["Private_Dirty"].split()[0]) * 1024

def infer(times):
    for _ in range(times):
        y = net(x)
        if leak:
            kept.append(np.array(y))

infer(8000)  # until caches and pools are as large as they get
before = used()
infer(count)
after = used()
assert np.abs(np.asarray(net(x)) - wanted).max() <= 1e-4 * np.abs(wanted).max()
print(after - before)
"""


def growth(bundle: Path, kind: str, count: int, leak: bool = False) -> int:
    """Bytes by which a process of its own grows over some inferences, after some others."""
    done = subprocess.run(
        [sys.executable, "-c", _GROW, bundle, kind, str(count), "leak" if leak else ""],
        env={**os.environ, "PYTHONPATH": str(Path(tvmattend.__file__).parents[1])},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"{bundle.name} {kind}, {count} inferences: {int(done.stdout)} bytes\n")
    return int(done.stdout)


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(100_000, marks=(pytest.mark.long, pytest.mark.timeout(3600)))]
)
@pytest.mark.parametrize("kind", ["plain", "signed"])
@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow(bundles: dict[str, Path], form: str, kind: str, count: int) -> None:
    assert growth(bundles[form], kind, count) < _GROWTH_BYTES


def test_a_leak_of_one_result_a_call_would_be_noticed(bundles: dict[str, Path]) -> None:
    """The control: ten floats, an array's header and a place in a list."""
    assert growth(bundles["standalone"], "plain", 10_000, leak=True) > _GROWTH_BYTES


def test_networks_that_are_let_go_give_their_memory_back(bundles: dict[str, Path]) -> None:
    """A standalone instance ends with its object, threads included."""

    def tasks() -> int:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208

    net = load(bundles["standalone"])
    before = tasks()
    for _ in range(10):
        del net
        gc.collect()
        net = load(bundles["standalone"])
        net.self_test()
    assert tasks() <= before
