# SPDX-License-Identifier: Apache-2.0
"""The table of runtimes and what `--against` makes of it."""

import ast
import importlib.util
from pathlib import Path

import pytest
from click.testing import CliRunner

from tvmattend.bench.catalogue import AGAINST, CATALOGUE, OURS, Entry, find, parse_against
from tvmattend.cli.bench import command
from tvmattend.errors import BenchmarkError

METHODS = {"convert", "prepare", "version", "feed", "run", "outputs", "time"}


def test_all_runtimes_of_the_documentation_are_there() -> None:
    assert (
        parse_against("openvino,onnxruntime,ncnn,executorch,torch-compile,torch,tvm-default")
        == AGAINST
    )


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_has_an_adapter(name: str) -> None:
    # Read, not imported: the packages of most of them are optional.
    spec = importlib.util.find_spec(CATALOGUE[name].module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    methods = {node.name for node in classes["Adapter"].body if isinstance(node, ast.FunctionDef)}
    assert classes["Adapter"].bases or methods >= METHODS


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "ncnn", "executorch", "litert"])
def test_optional_peers_name_their_packages_and_the_line_that_installs_them(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.peer
    assert entry.packages
    assert entry.install.startswith("pip install ")


def test_tvm_and_other_builds_of_ours_are_no_peers() -> None:
    others = [name for name, entry in CATALOGUE.items() if not entry.peer]
    assert others == [
        OURS, "tvm-default", "tvm-default-tuned",
        "tvmattend-untuned", "tvmattend-vm", "tvmattend-standalone",
    ]  # fmt: skip


def test_missing_packages_are_found_without_importing() -> None:
    entry = Entry("some", "json", ("json", "no_package_has_this_name"))
    assert entry.missing() == ("no_package_has_this_name",)
    assert Entry("some", "json", ("json",)).missing() == ()


def test_repetitions_spaces_and_ourselves_are_forgiven() -> None:
    assert parse_against(" torch, ncnn ,torch,tvmattend,") == ("torch", "ncnn")


def test_unknown_runtime_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(BenchmarkError, match="`openvion`") as caught:
        parse_against("torch,openvion")
    assert "openvino" in caught.value.hint


def test_unknown_runtime_far_from_all_names_them_all() -> None:
    with pytest.raises(BenchmarkError) as caught:
        find("zzz")
    assert "ncnn" in caught.value.hint
    assert "litert" in caught.value.hint


def test_unknown_runtime_of_an_estimate_names_those_that_can_be_estimated() -> None:
    words = ["--estimate", "--target", "cortex-a72", "--against", "foo"]
    with pytest.raises(BenchmarkError) as caught:
        CliRunner().invoke(command, words, catch_exceptions=False)
    assert caught.value.hint == "there are ncnn, litert, onnxruntime"


def test_against_nothing_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="no runtime"):
        parse_against(" , ")


def test_ours_alone_is_nothing_to_compare_with() -> None:
    with pytest.raises(BenchmarkError, match="names no runtime beside tvmattend"):
        parse_against("tvmattend")
