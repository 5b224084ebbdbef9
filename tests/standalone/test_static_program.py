# SPDX-License-Identifier: Apache-2.0
"""`build --libc musl --verify`: the golden vectors run in a static program, here or emulated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tvmattend import elf
from tvmattend.cli.main import cli as command
from tvmattend.errors import ValidationError
from tvmattend.standalone.static_program import open_static
from tvmattend.target import TargetSpec, host_target


def build(*words: Any) -> dict[str, Any]:
    options = ["build", "--model", "attendnext_tiny", "--format", "standalone", "--no-records"]
    result = CliRunner().invoke(command, [*options, *map(str, words), "--json"])
    if result.exception is not None:
        raise result.exception
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("musl") / "bundle"
    words = ["--target", "host", "--threads", 2, "--libc", "musl", "--name", "my-net", "--verify"]
    report = build(*words, "-o", place)
    assert report["verified"]["max_rel_error"] <= 1e-4
    assert report["format"] == "standalone"
    return place


def test_a_name_is_that_of_all_files_and_names(musl: Path) -> None:
    names = {path.name for path in musl.iterdir()}
    assert {"libmy_net.so", "libmy_net.a", "my_net.h", "my_net.hpp"} <= names
    visible = elf.symbols(musl / "libmy_net.so", dynamic=True).visible
    assert {name for name in visible if not name.startswith("my_net_")} == {"__tvm_ffi_my_net_rpc"}
    assert elf.needed(musl / "libmy_net.so") == ["libc.so"]


def test_wrong_results_are_found(musl: Path, host: TargetSpec) -> None:
    with open_static(musl, host) as net:
        (inputs, (expected,)), *_ = net.golden()
        assert net(*inputs).shape == expected.shape
        inputs[0][0, 0, 0, 0] = float("nan")
        assert not (abs(net(*inputs) - expected) < 1e-4).all()


def test_a_program_that_fails_is_said(musl: Path, host: TargetSpec) -> None:
    with (
        open_static(musl, host, ["/bin/false"]) as net,
        pytest.raises(ValidationError, match="exit code 1"),
    ):
        net.golden_errors()


@pytest.mark.emulated
def test_a_bundle_for_a_board_is_verified_too(tmp_path: Path) -> None:
    assert shutil.which("qemu-aarch64")
    report = build("--libc", "musl", "--verify", "-o", tmp_path / "bundle")
    assert report["target"]["mcpu"] == "cortex-a72"
    assert report["verified"]["max_rel_error"] <= 1e-4


def test_a_name_is_of_a_c_library(tmp_path: Path) -> None:
    words = ["build", "--format", "vm", "--name", "n", "-o", str(tmp_path / "bundle")]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 2
    assert "--format standalone" in done.output
    assert not list(tmp_path.iterdir())


@pytest.fixture
def host() -> TargetSpec:
    return host_target(threads=2)
