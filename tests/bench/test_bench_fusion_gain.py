# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/fusion_gain.py` says of its figures, and that its blocks are the networks'."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tvmattend.models import REGISTRY


@pytest.fixture(scope="module")
def fusion_gain() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "fusion_gain.py"
    spec = importlib.util.spec_from_file_location("benchmarks_fusion_gain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(subject: str, gain: float) -> dict[str, object]:
    return {
        "subject": subject, "how": "estimated", "threads": 1, "gain": gain,
        "launches": {"fused": 1, "unfused": 5}, "fused": 1e-3, "unfused": gain * 1e-3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "gain", "word"),
    [
        ("attendnext", 1.2, "met"),
        ("attendnext", 1.1, "missed"),
        ("attendnext_stage1", 1.01, "met"),
        ("attendnext_stage1", 0.99, "missed"),
    ],
)
def test_a_goal_is_met_or_missed(
    fusion_gain: ModuleType, subject: str, gain: float, word: str
) -> None:
    found = {
        "date": "today", "model": "attendnext", "trials": 0, "entries": [entry(subject, gain)],
        "machine": fusion_gain.describe_machine(),
        "target": "x86-64-v3",
    }  # fmt: skip
    assert f"| {gain:.3f}x | {word} |" in fusion_gain.document(found)
    assert ("short of the goal" in fusion_gain._line(entry(subject, gain))) == (word == "missed")


def test_blocks_have_the_inputs_that_they_have_in_the_network(fusion_gain: ModuleType) -> None:
    stages = len(REGISTRY["attendnext_tiny"].stages)
    shapes = [fusion_gain._block("attendnext_tiny", stage).input_shape for stage in range(stages)]
    assert [shape[1] for shape in shapes] == [16, 16, 8, 4]
