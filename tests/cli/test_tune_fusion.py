# SPDX-License-Identifier: Apache-2.0
"""`tvmattend tune --dry-run` shows what will be fused, and tunes the unfused kernels on demand."""

import json

from click.testing import CliRunner

from tvmattend.cli.tune import command


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
