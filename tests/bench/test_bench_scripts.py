# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/peers.py` keeps of its comparisons."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tvmattend.bench.host import describe_machine, machine_slug
from tvmattend.bench.report import Comparison, Result
from tvmattend.bench.timing import Timing


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("benchmarks_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def comparison(model: str, threads: int, milliseconds: float) -> Comparison:
    times = Timing(((milliseconds / 1e3,) * 3,))
    results = (
        Result("tvmattend", "1", times, 1e-6, False),
        Result("torch", "2", Timing(((0.02,) * 3,)), 1e-6, True),
    )
    return Comparison(model, threads, describe_machine(), results, (), "torch 2", 3, 0.0)


def test_a_comparison_replaces_the_one_of_its_network_and_threads(
    peers: ModuleType, tmp_path: Path
) -> None:
    peers.store(comparison("attendnext_xs", 1, 9.0), tmp_path)
    peers.store(comparison("attendnext", 2, 5.0), tmp_path)
    peers.store(comparison("attendnext", 1, 8.0), tmp_path)
    data, text = peers.store(comparison("attendnext", 1, 4.0), tmp_path)
    entries = json.loads(data.read_text(encoding="utf-8"))
    order = [("attendnext", 1), ("attendnext", 2), ("attendnext_xs", 1)]
    assert [(entry["model"], entry["threads"]) for entry in entries] == order
    assert entries[0]["ratio"] == 5.0
    assert entries[0]["date"]
    document = text.read_text(encoding="utf-8")
    assert document.count("| tvmattend |") == 3
    assert "5.00x its speed" in document
    assert "2.50x its speed" not in document


def test_a_run_that_tuned_tvm_itself_is_kept_beside_the_others(
    peers: ModuleType, tmp_path: Path
) -> None:
    tuned = replace(comparison("attendnext", 1, 5.0), trials=400)
    for found in (tuned, comparison("attendnext", 1, 4.0), tuned):
        data, _ = peers.store(found, tmp_path)
    entries = json.loads(data.read_text(encoding="utf-8"))
    assert [(entry["trials"], entry["ratio"]) for entry in entries] == [(0, 5.0), (400, 4.0)]


def test_busy_machine_is_told_in_the_document(peers: ModuleType, tmp_path: Path) -> None:
    _, text = peers.store(replace(comparison("attendnext", 1, 4.0), others=0.4), tmp_path)
    assert "other processes used 40%" in text.read_text(encoding="utf-8")


def test_machines_have_files_of_their_own() -> None:
    machine = describe_machine()
    slug = machine_slug(machine)
    assert slug
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    others = ({"cpu": "Cortex-A72 (r0p3)"}, {"cores": 1024}, {"simd": "another"})
    assert slug not in {machine_slug({**machine, **other}) for other in others}
