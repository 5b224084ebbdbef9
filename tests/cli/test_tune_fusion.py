# SPDX-License-Identifier: Apache-2.0
"""`tvmattend tune --dry-run` shows what will be fused, and tunes the unfused kernels on demand."""

import json

import click
from click.testing import CliRunner

from tvmattend.cli.tune import command
from tvmattend.errors import FusionError

_GATED = """
import torch

class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.expand = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.project = torch.nn.Conv2d(3, 8, 1)

    def forward(self, x):
        attention = self.expand(torch.nn.functional.silu(self.embed(x)))
        return torch.softmax(attention, 2) * self.project(x)
"""


def plan(*words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "cache"))
    words = ["--model", "attendnext_tiny", "--target", "cortex-a72", "--dry-run", *words]
    result = CliRunner().invoke(command, words)
    assert result.exception is None, result.output
    return result.stdout


def test_the_fusion_table_is_printed(monkeypatch, tmp_path):
    text = plan(monkeypatch=monkeypatch, tmp_path=tmp_path)
    assert "fusion    dcac 4 of 4 blocks fused\n" in text
    assert "launches" in text


def test_no_fusion_plans_the_kernels_of_build_no_fusion(monkeypatch, tmp_path):
    data = json.loads(plan("--no-fusion", "--json", monkeypatch=monkeypatch, tmp_path=tmp_path))
    assert data["fusion"]["dcac"] == {"matched": 0, "candidates": 4}
    assert not any("dcac" in task["name"] for task in data["tasks"])
    assert {verdict["reason"] for verdict in data["fusion"]["verdicts"]} == {"the rule is off"}


def test_strict_fusion_refuses_before_any_trial(monkeypatch, tmp_path):
    (tmp_path / "gated.py").write_text(_GATED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path / "cache"))
    words = ["--model", "gated:Gated", "--input-size", "16", "--target", "cortex-a72", "--dry-run"]
    assert "dcac 0 of 1 blocks fused" in CliRunner().invoke(command, words).stdout
    refused = CliRunner().invoke(command, [*words, "--strict-fusion"], standalone_mode=False)
    assert isinstance(refused.exception, FusionError)
    assert "1 DC-AC block is not fused: `" in str(refused.exception)
    assert "softmax over axis 2" in str(refused.exception)


def test_strict_fusion_and_no_fusion_contradict_each_other():
    words = ["--no-fusion", "--strict-fusion", "--dry-run"]
    refused = CliRunner().invoke(command, words, standalone_mode=False)
    assert isinstance(refused.exception, click.UsageError)
