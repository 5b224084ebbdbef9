# SPDX-License-Identifier: Apache-2.0
"""`tvmattend build`: the fusion table, its ledger, and the flags about it."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tvmattend.cli.build import command
from tvmattend.errors import FusionError

NETWORKS = """
import torch
from torch import nn

class Gated(nn.Module):
    "A condenser but for its softmax, which is over the rows."
    input_shape = (1, 3, 16, 16)

    def __init__(self):
        super().__init__()
        self.embed, self.expand = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.project = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        attention = self.expand(torch.nn.functional.silu(self.embed(x)))
        return torch.nn.functional.silu(attention.softmax(2) * self.project(x))

class Plain(nn.Sequential):
    "A network without attention."
    input_shape = (1, 3, 16, 16)

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
        )
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "networks_of_fusion.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(*arguments: Any, fails: type[Exception] | None = None) -> Result:
    """Call the command as `main` does; its errors are exceptions here."""
    words = ["--target", "host", *(str(word) for word in arguments)]
    result = CliRunner().invoke(command, words, standalone_mode=False)
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
    elif result.exception is not None:
        raise result.exception
    return result


def test_a_network_without_blocks_builds_and_says_so(networks: Path) -> None:
    model = ("--model", "networks_of_fusion:Plain", "-o", "bundle")
    result = build(*model, "--strict-fusion", "--dump-ir", "ir", "--verify")
    assert "fusion   dcac 0 blocks\n" in result.stdout
    assert "global_pool_linear 1 of 1 fused" in result.stdout
    assert (networks / "ir" / "00-canonical.py").is_file()
    manifest = json.loads((networks / "bundle" / "manifest.json").read_text())
    assert manifest["fusion"]["dcac"] == {"matched": 0, "candidates": 0}

    unfused = build(*model, "--no-fusion", "--force", "--json")
    fusion = json.loads(unfused.stdout)["fusion"]
    assert fusion["rules"] == {}
    launches = [ledger["kernel_launches"]["fused"] for ledger in (manifest["fusion"], fusion)]
    assert launches[0] < launches[1]


def test_a_missed_block_is_told_and_strict_refuses_it(networks: Path) -> None:
    model = ("--model", "networks_of_fusion:Gated", "-o", "bundle")
    result = build(*model, "--strict-fusion", fails=FusionError)
    assert "softmax over axis 2" in str(result.exception)
    assert not (networks / "bundle").exists()


def test_strict_and_no_fusion_contradict_each_other(networks: Path) -> None:
    build("--no-fusion", "--strict-fusion", fails=click.UsageError)


def test_the_error_has_an_exit_code_of_its_own() -> None:
    others = {
        error.exit_code
        for error in FusionError.__mro__[1].__subclasses__()
        if error is not FusionError
    }
    assert FusionError.exit_code not in others
