# SPDX-License-Identifier: Apache-2.0
"""Where the time goes: the kernels of a small bundle, timed and explained."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sample_bundles import rewrite_manifest

from tvmattend import errors
from tvmattend.bench.kernel_report import Kernel, Profile
from tvmattend.bench.profiled import Call, Inference, Seen
from tvmattend.bench.profiled_here import ProfiledHere
from tvmattend.bench.profiling import profile
from tvmattend.bench.roofline import Roofline, measure
from tvmattend.bundle.signing import create_key
from tvmattend.cli.profile import command
from tvmattend.codegen import build
from tvmattend.codegen.kernel_facts import kernel_facts
from tvmattend.errors import BundleMismatchError, InputError
from tvmattend.frontend import ModelRequest, import_model
from tvmattend.models import lookup, macs
from tvmattend.runtime import load
from tvmattend.runtime.executors import kernel_thread
from tvmattend.runtime.network import BundleError
from tvmattend.target import parse_target
from tvmattend.transform import lower_with_report
from tvmattend.transform.rules import all_rules

HOST = parse_target("host", 1)


def built(place: pytest.TempPathFactory, form: str) -> Path:
    directory = place.mktemp("profile") / form
    build("attendnext_tiny", HOST, output=directory, use_records=False, format=form)
    return directory


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory, "vm")


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory, "standalone")


@pytest.fixture(scope="module")
def found(bundle: Path) -> Profile:
    return profile(bundle, runs=10)


def test_kernels_are_timed_in_the_order_of_the_network(found: Profile) -> None:
    modules = [kernel.modules[0] for kernel in found.kernels if kernel.modules]
    assert modules[0].startswith("stem")
    assert modules[-1] == "head"
    for kernel in found.kernels:
        assert kernel.again > 0
        assert 0 < kernel.seconds < 1
        assert kernel.moved is not None
        assert kernel.moved > 0


def test_parts_and_whole_agree(found: Profile) -> None:
    # Both are the best of ten; 30 kernels of a few microseconds, one of them the instrument's.
    assert 0.3 < found.best_kernels / found.best_inference < 4
    assert sum(share for _, _, share in found.by_module()) == pytest.approx(1)


def test_json_says_all_that_was_promised(found: Profile) -> None:
    data = json.loads(json.dumps(found.to_json()))
    assert data["peak_gflops"] > 1
    assert data["bandwidth_gbs"] > 1
    assert sum(entry["share"] for entry in data["kernels"]) == pytest.approx(1, abs=0.01)
    for entry in data["kernels"]:
        assert entry["ms"] > 0
        assert entry["bound"] in {"compute", "memory"}
        assert 0 <= entry["percent_of_peak"] < 150
        assert entry["gflops"] == pytest.approx(
            entry["flops"] / entry["ms"] / 1e6, rel=0.02, abs=0.1
        )


def test_says_what_makes_figures_doubtful(found: Profile) -> None:
    slow = replace(found.kernels[0], seconds=1.0)
    quiet = replace(found, others=0.01, kernels=(slow,))
    assert quiet.notes() == []
    assert quiet.to_json()["other_load"] == 0.01
    (busy,) = replace(quiet, others=0.4).notes()
    assert "other processes used 40%" in busy
    seconds = slow.flops / (2 * found.roofline.flops)
    fast = replace(slow, seconds=seconds, family="elementwise+winograd_tiles")
    (beyond,) = replace(quiet, kernels=(slow, fast)).notes()
    assert "additions of Winograd's transforms" in beyond
    (strange,) = replace(quiet, kernels=(slow, replace(fast, family="dense"))).notes()
    assert "without Winograd: lanes that only fill a vector" in strange


def test_instrument_leaves_nothing_behind(bundle: Path) -> None:
    # The same library in the same process, profiled before and used after.
    profile(bundle, runs=1)
    assert max(load(bundle).self_test()) < 1e-4


def test_facts_cover_the_arithmetic_of_the_network() -> None:
    model = import_model("attendnext_tiny")
    target = parse_target("host", 1)
    lowered = lower_with_report(model.ir_module, target)
    facts = kernel_facts(lowered.stages, model.module_paths, target)
    least = 2 * macs(lookup("attendnext_tiny"))
    # Activations, gates and padded channels come on top.
    assert least < sum(fact.flops for fact in facts) < 2.5 * least
    heavy = [fact for fact in facts if fact.flops > 0.01 * least]
    assert all(fact.modules for fact in heavy)
    named = {path for fact in facts for path in fact.modules}
    assert {"stem.expand", "stages.0.0.project", "head"} <= named


def test_facts_of_fused_blocks_name_every_part() -> None:
    model = import_model("attendnext_tiny")
    target = parse_target("host", 1)
    lowered = lower_with_report(model.ir_module, target, rules=all_rules())
    facts = kernel_facts(lowered.stages, model.module_paths, target)
    fused = [fact for fact in facts if "stages.0.0.project" in fact.modules]
    assert len(fused) == 1
    assert {"stages.0.0.attention.embed", "stages.0.0.attention.expand"} <= set(fused[0].modules)
    assert all(fact.modules for fact in facts)


def two_layers() -> Any:
    import torch

    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)
    )


def test_a_network_that_does_not_ship_is_explained_too(tmp_path: Path) -> None:
    request = ModelRequest(f"{__name__}:two_layers", input_size=8)
    build(request, parse_target("host", 1), output=tmp_path / "foreign")
    found = profile(tmp_path / "foreign", runs=3)
    heavy = [kernel for kernel in found.kernels if kernel.flops > 1000]
    assert [kernel.modules for kernel in heavy] == [("0",), ("3",)]
    # 8 x 3 x 3 x 3 x 36 multiply-accumulates and the bias; padding of channels may add to it.
    assert 2 * 8 * 27 * 36 <= heavy[0].flops < 4 * 8 * 27 * 36


def test_a_manifest_of_other_kernels_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    launches = json.loads((other / "manifest.json").read_text())["launches"]
    rewrite_manifest(other, launches=launches[1:])
    with pytest.raises(errors.BundleError, match="does not name"):
        profile(other, runs=1)


def test_standalone_library_has_the_same_kernels(found: Profile, standalone: Path) -> None:
    other = profile(standalone, runs=5)
    assert [kernel.name for kernel in other.kernels] == [kernel.name for kernel in found.kernels]
    assert [kernel.modules for kernel in other.kernels] == [k.modules for k in found.kernels]
    assert all(kernel.seconds > 0 and kernel.again is None for kernel in other.kernels)
    assert other.lines()


def test_on_a_board(found: Profile, standalone: Path, host_board: str) -> None:
    there = profile(standalone, runs=5, board=host_board)
    assert [kernel.name for kernel in there.kernels] == [kernel.name for kernel in found.kernels]
    assert all(0 < kernel.seconds < 1 and kernel.again is None for kernel in there.kernels)
    # The same machine, by the same kernels: what it reaches is not a board's answer to a message.
    assert 0.2 < there.roofline.flops / found.roofline.flops < 5
    assert there.roofline.footprint == pytest.approx(
        (standalone / "libattendnext_tiny.so").stat().st_size, rel=0.01
    )
    assert 0.3 < there.best_kernels / there.best_inference < 3
    assert there.machine["endpoint"] == host_board
    assert there.lines()[1].startswith(host_board)
    assert there.others is None


def test_the_virtual_machine_of_a_board_tells_nothing(bundle: Path, host_board: str) -> None:
    with pytest.raises(BundleMismatchError, match="over RPC") as caught:
        profile(bundle, runs=1, board=host_board)
    assert "--format standalone" in caught.value.hint


def test_the_limits_are_those_of_as_many_threads(standalone: Path) -> None:
    """TVM's pool, which measures them, has half of an x86's CPUs unless it is told."""
    import tvm_ffi

    threads = len(os.sched_getaffinity(0))
    here = ProfiledHere(load(standalone, threads))
    measure(parse_target("host", threads), 1024, partial(here.least_seconds, target=HOST))
    used = tvm_ffi.get_global_func("runtime.NumThreads")
    assert kernel_thread(threads).submit(used).result() == threads


def test_a_kernel_shorter_than_the_clock_has_a_rate(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [Call(launch["name"]) for launch in load(bundle, 1).manifest["launches"]]
    runs = [Inference(calls)] * 2

    class Quick(ProfiledHere):
        def look(self, *_: object) -> Seen:
            return Seen(runs, runs, [1e-6, 1e-6])

    monkeypatch.setattr("tvmattend.bench.profiled_here.ProfiledHere", Quick)
    found = profile(bundle, 1)
    assert all(kernel.seconds == 1e-9 for kernel in found.kernels)
    assert found.lines()
    assert found.to_json()


@pytest.mark.emulated
def test_on_the_emulated_board(emulated_board: str, tmp_path: Path) -> None:
    build("attendnext_tiny", parse_target("cortex-a72", 2), output=tmp_path / "a72")
    options = ["--rpc", emulated_board, "--runs", "2", "--threads", "1"]
    done = CliRunner().invoke(command, [str(tmp_path / "a72"), *options, "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["machine"]["emulated"]
    assert data["threads"] == 1
    assert sum(entry["share"] for entry in data["kernels"]) == pytest.approx(1, abs=0.01)
    assert "its times say nothing about silicon" in done.stderr


def test_a_signature_is_asked_for_before_a_profile(standalone: Path, tmp_path: Path) -> None:
    key = tmp_path / "mine.pem.pub"
    create_key(tmp_path / "mine.pem")
    done = CliRunner().invoke(command, [str(standalone), "--require-signature", str(key)])
    assert done.exception.exit_code == 23


@pytest.mark.parametrize(
    ("flops", "moved", "bound", "seconds"),
    [(100.0, 10.0, "compute", 1.0), (1.0, 50.0, "memory", 5.0)],
)
def test_roofline(flops: float, moved: float, bound: str, seconds: float) -> None:
    roofline = Roofline(flops=100.0, bandwidth=10.0, footprint=1)
    assert roofline.bound(flops, moved) == (bound, seconds)


def test_where_a_kernel_comes_from_in_words() -> None:
    assert Kernel("k", 1e-6, 1e-6, 64, 0.0, (), "copy").where() == "(compiler)"
    assert Kernel("k", 1e-6, 1e-6, 64, 0.0, ("",), "mean").where() == "(network)"


def test_command_prints_a_table_or_one_object(bundle: Path) -> None:
    runner = CliRunner()
    table = runner.invoke(command, [str(bundle), "--runs", "2", "--top", "3"])
    assert table.exit_code == 0, table.output
    assert "GFLOP/s" in table.stdout
    assert "explained" in table.stdout
    printed = runner.invoke(command, [str(bundle), "--runs", "2", "--top", "2", "--json"])
    data = json.loads(printed.stdout)
    assert data["model"] == "attendnext_tiny"
    assert len(data["kernels"]) == 2


def test_no_kernel_is_no_table(bundle: Path) -> None:
    for top in ("0", "-2"):
        assert CliRunner().invoke(command, [str(bundle), "--top", top]).exit_code == 2


def test_mistakes(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--runs 0"):
        profile(bundle, runs=0)
    with pytest.raises(BundleError):
        profile(tmp_path)
