# SPDX-License-Identifier: Apache-2.0
"""Runtimes on a Cortex-A72 that nobody has: what is refused, what is said, one real comparison."""

import json
import re
import tempfile
from dataclasses import replace
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tvmattend.bench import estimated
from tvmattend.bench.board_peers import BOARD_PEERS, BoardPeer
from tvmattend.bench.catalogue import CATALOGUE
from tvmattend.bench.estimate_report import Estimated, EstimatedComparison
from tvmattend.bench.report import Absent
from tvmattend.cli.bench import command
from tvmattend.errors import BenchmarkError, BundleMismatchError, InputError, ToolMissingError
from tvmattend.frontend import ModelRequest
from tvmattend.machine.estimate import Estimate, Part
from tvmattend.machine.parameters import MODEL_ERROR, SHIPPED
from tvmattend.target import parse_target

A72 = parse_target("cortex-a72", 1)
TINY = ModelRequest("attendnext_tiny")


def compare(*against: str, target: Any = A72, threads: int = 1) -> EstimatedComparison:
    options = estimated.EstimateOptions(threads, against, use_records=False)
    return estimated.compare_estimates(TINY, target, options)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise AssertionError("started something")

    monkeypatch.setattr("tvmattend.bench.estimated.Worker", start)


@pytest.mark.usefixtures("no_work")
def test_what_cannot_be_estimated_is_refused_before_any_work() -> None:
    with pytest.raises(BenchmarkError, match="no runtime `ncn`"):
        compare("ncn")
    with pytest.raises(BundleMismatchError, match="core is cortex-a76"):
        compare("ncnn", target=parse_target("cortex-a76", 1))
    with pytest.raises(InputError, match="--threads 2"):
        compare("ncnn", threads=2)


@pytest.mark.usefixtures("no_work")
def test_a_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ToolMissingError, match="qemu-aarch64") as missing:
        compare("ncnn")
    assert "qemu-user" in missing.value.hint


def test_options_of_a_timing_do_not_go_with_an_estimate() -> None:
    words = ["--estimate", "--target", "cortex-a72", "--rounds", "3"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2
    assert "do not go with --estimate" in result.output


def test_every_peer_of_the_board_is_one_of_the_catalogue() -> None:
    assert set(BOARD_PEERS) <= set(CATALOGUE)
    assert set(estimated.AGAINST) <= set(BOARD_PEERS)


def test_what_runs_on_the_board_imports_nothing_of_ours() -> None:
    for name in ("peer_guest.py", "peer_settings.py"):
        text = estimated._GUEST.with_name(name).read_text(encoding="utf-8")
        assert not re.findall(r"^ *(?:from|import) tvmattend\b", text, re.MULTILINE), name


def made(name: str, cycles: float, peer: bool) -> Estimated:
    whole = Part("all", cycles, 1000, 10.0, resources={"DRAM": cycles})
    return Estimated(name, "1", Estimate(whole, (), 1, 0, SHIPPED), 1e-6, peer)


def test_the_table_says_that_it_is_estimated_and_how_well() -> None:
    absent = Absent("litert", "missing", "pip install x")
    found = EstimatedComparison(
        "net", 1, (made("tvmattend", 1e6, False), made("slow", 3e6, True), made("ncnn", 2e6, True)),
        (absent,), "torch",
    )  # fmt: skip
    text = "\n".join(found.lines())
    assert "ESTIMATED" in text
    assert f"{100 * MODEL_ERROR[1]:.1f} %" in text
    assert "litert: missing: pip install x" in text
    assert "fastest peer: ncnn; tvmattend is 2.00x its speed (estimated)" in text
    data = found.to_json()
    assert (data["estimated"], data["ratio"], data["model_error"]) == (True, 2.0, MODEL_ERROR[1])
    assert data["results"][0]["bound"] == "DRAM"
    assert data["not_estimated"][0]["runtime"] == "litert"


def test_a_wrong_output_of_ours_is_an_error_and_no_peer_stands_for_us(monkeypatch: Any) -> None:
    def wrong(entry: Any, *_: Any) -> Estimated:
        return replace(made(entry.name, 1e6, entry.peer), max_rel_error=0.5)

    monkeypatch.setattr(estimated, "_estimate", wrong)
    monkeypatch.setattr("tvmattend.bench.board_peers.BoardPeer.missing", lambda _: ())
    with pytest.raises(BenchmarkError, match="own output is off by 5"):
        compare("onnxruntime")


@pytest.mark.emulated
def test_onnx_runtime_beside_ours(emulated: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """Its aarch64 wheel runs; those that cannot are rows with the reason; nothing is left."""
    del emulated
    broken = BoardPeer("ncnn", (), ("no_such_converter",))
    monkeypatch.setitem(BOARD_PEERS, "ncnn", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    found = compare("onnxruntime", "ncnn", "openvino")
    assert [result.runtime for result in found.results] == ["tvmattend", "onnxruntime"]
    for result in found.results:
        assert result.max_rel_error < 1e-5
        # 0.84 M multiply-accumulates, four an instruction
        assert result.estimate.whole.fma > 0.8 * 840_000 / 4 * 0.9
        assert result.estimate.whole.cycles > result.estimate.whole.fma
    reasons = {entry.runtime: (entry.state, entry.reason) for entry in found.absent}
    assert reasons["ncnn"][0] == "missing"
    assert "no_such_converter" in reasons["ncnn"][1]
    assert reasons["openvino"][0] == "no adapter"
    assert json.dumps(found.to_json())
    # PyTorch's exporter makes a folder of its own there, whatever it exports.
    assert {path.name for path in tmp_path.iterdir()} <= {f"torchinductor_{getuser()}"}
