# SPDX-License-Identifier: Apache-2.0
"""`tvmattend validate`: one line a golden vector, and a failure above the tolerance."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sample_bundles import cortex_a72_bundle, rehash

from tvmattend.cli.validate import command
from tvmattend.errors import ValidationError
from tvmattend.runtime.network import BundleError


def validate(*arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(word) for word in arguments])


@pytest.fixture
def wrong(bundle: Path) -> Path:
    """A sound bundle whose second golden output is a thousandth off."""
    with np.load(bundle / "golden.npz") as archive:
        arrays = dict(archive)
    arrays["output0"][1] += 1e-3 * np.abs(arrays["output0"][1]).max()
    np.savez(bundle / "golden.npz", **arrays)
    rehash(bundle)
    return bundle


def test_a_good_bundle_passes(sound_bundle: Path) -> None:
    result = validate(sound_bundle)
    assert result.exit_code == 0
    *vectors, verdict = result.stdout.splitlines()
    assert len(vectors) == 3
    assert all(line.endswith("ok") for line in vectors)
    assert verdict == "passed: 3 vectors within 1e-04 of numpy (here)"


def test_an_error_above_the_tolerance_fails_and_names_the_vector(wrong: Path) -> None:
    result = validate(wrong)
    assert isinstance(result.exception, ValidationError)
    assert result.exception.exit_code == 16
    assert "1 of 3" in str(result.exception)
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["ok", "FAILED", "ok"]


def test_json_tells_a_failure_too(wrong: Path) -> None:
    result = validate(wrong, "--json")
    assert isinstance(result.exception, ValidationError)
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert [error > report["tolerance"] for error in report["errors"]] == [False, True, False]


def test_a_damaged_bundle_is_not_validated(bundle: Path) -> None:
    (bundle / "golden.npz").write_bytes(b"")
    result = validate(bundle)
    assert isinstance(result.exception, BundleError)
    assert not result.stdout


def test_over_rpc(sound_bundle: Path, wrong: Path, host_board: str) -> None:
    report = json.loads(validate(sound_bundle, "--rpc", host_board, "--json").stdout)
    assert report["passed"] is True
    assert max(report["errors"]) < 1e-6
    assert report["board"]["endpoint"] == host_board
    assert isinstance(validate(wrong, "--rpc", host_board).exception, ValidationError)


@pytest.mark.emulated
def test_on_the_emulated_board(emulated_board: str, tmp_path: Path) -> None:
    result = validate(cortex_a72_bundle(tmp_path), "--rpc", emulated_board)
    assert result.exit_code == 0, result.output
    assert "EMULATED" in result.stdout
    assert "say nothing about silicon" in result.stderr
