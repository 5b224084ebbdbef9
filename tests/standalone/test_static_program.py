# SPDX-License-Identifier: Apache-2.0
"""`build --libc musl --verify`: the golden vectors run in a static program, here or emulated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tvmattend.cli.main import cli as command
from tvmattend.errors import ValidationError
from tvmattend.standalone import elf
from tvmattend.standalone.static_program import open_static
from tvmattend.target import parse_target


def build(*words: Any) -> dict[str, Any]:
    options = ["build", "--model", "attendnext_tiny", "--format", "standalone", "--no-records"]
    result = CliRunner().invoke(command, [*options, *map(str, words), "--json"])
    if result.exception is not None:
        raise result.exception
    report: dict[str, Any] = json.loads(result.stdout)
    return report


QEMU = ["qemu-aarch64", "-cpu", "cortex-a72"]


def verified(place: Path, *words: Any) -> Path:
    report = build(*words, "--threads", 2, "--libc", "musl", "--verify", "-o", place)
    assert report["verified"]["max_rel_error"] <= 1e-4
    assert report["format"] == "standalone"
    return place


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert shutil.which(QEMU[0]), "install qemu-user (Debian: `apt-get install qemu-user`)"
    bundle = verified(tmp_path_factory.mktemp("musl") / "bundle", "--name", "my_net")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["target"]["mcpu"] == "cortex-a72", "the default"
    return bundle


@pytest.mark.emulated
def test_a_name_is_that_of_all_files_and_names(musl: Path) -> None:
    names = {path.name for path in musl.iterdir()}
    assert {"libmy_net.so", "libmy_net.a", "my_net.h", "my_net.hpp"} <= names
    visible = elf.symbols(musl / "libmy_net.so", dynamic=True).visible
    assert {name for name in visible if not name.startswith("my_net_")} == {"__tvm_ffi_my_net_rpc"}
    assert elf.needed(musl / "libmy_net.so") == ["libc.so"]


@pytest.mark.emulated
def test_wrong_results_are_found(musl: Path) -> None:
    with open_static(musl, parse_target("cortex-a72"), QEMU) as net:
        (inputs, (expected,)), *_ = net.golden()
        assert net(*inputs).shape == expected.shape
        inputs[0][0, 0, 0, 0] = float("nan")
        assert not (abs(net(*inputs) - expected) < 1e-4).all()


@pytest.mark.emulated
def test_a_program_that_fails_is_said(musl: Path) -> None:
    with (
        open_static(musl, parse_target("cortex-a72"), ["/bin/false"]) as net,
        pytest.raises(ValidationError, match="exit code 1"),
    ):
        net.golden_errors()


@pytest.mark.long  # Zig builds this machine's musl first, which nothing else here needs
def test_a_bundle_for_this_machine_is_verified_without_an_emulator(tmp_path: Path) -> None:
    verified(tmp_path / "bundle", "--target", "host")


def test_a_name_is_of_a_c_library(tmp_path: Path) -> None:
    words = ["build", "--format", "vm", "--name", "n", "-o", str(tmp_path / "bundle")]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 2
    assert "--format standalone" in done.output
    assert not list(tmp_path.iterdir())
