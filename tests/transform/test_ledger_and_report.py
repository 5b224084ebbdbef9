# SPDX-License-Identifier: Apache-2.0
"""The ledger counts what it says it counts; the report says what was fused and what was not."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from relax_blocks import HOST, Block, module
from tvm import relax
from tvm.script import tirx as T  # noqa: N812  (TVMScript's own spelling)

from tvmattend.codegen.schedule import schedule_kernels
from tvmattend.errors import FusionError, StorageError
from tvmattend.transform import all_rules, lower, lower_with_report
from tvmattend.transform.dump import Dump
from tvmattend.transform.fuse_dcac import FuseDCAC
from tvmattend.transform.ledger import keep_account, lower_by_default
from tvmattend.transform.rules import DCAC
from tvmattend.tuning.records import RecordSet


def chain(e, x):
    """Two kernels, because no fusion crosses two convolutions, and two readers of the first."""
    hidden = e.act(e.conv(x, 8, 1))
    return e.emit(relax.op.add(e.conv(hidden, 8, 1), hidden))


def test_launches_and_traffic_of_two_kernels():
    mod = module(chain, (1, 4, 6, 6))
    with HOST.to_tvm():
        account = keep_account(lower_by_default(mod), 1)
    hidden = 4 * 8 * 6 * 6
    assert account.kernel_launches == 2
    # Written once, read by one kernel, though in two places of it: the second reading is cached.
    assert account.intermediate_bytes == 2 * hidden
    assert account.workspace_bytes >= hidden


def test_an_output_and_an_input_are_no_intermediates():
    mod = module(lambda e, x: e.conv(x, 8, 1), (1, 4, 6, 6))
    assert keep_account(lower(mod, HOST, rules=()), 1).intermediate_bytes == 0


def test_scratch_in_a_parallel_loop_counts_for_every_thread():
    # Register tiles and slabs of a scheduled convolution live inside its parallel loop.
    mod = module(lambda e, x: e.conv(x, 32, 3, 4), (1, 32, 28, 28))
    scheduled = schedule_kernels(lower(mod, HOST, rules=()), HOST, RecordSet()).mod
    one, two, three = (keep_account(scheduled, threads).workspace_bytes for threads in (1, 2, 3))
    assert one < two
    assert three - two == two - one


def test_the_report_is_what_the_issue_asks_for():
    lowered = lower_with_report(Block().module(), HOST, rules=[FuseDCAC()])
    scheduled = schedule_kernels(lowered.mod, HOST, RecordSet()).mod
    report = lowered.fusion.of_scheduled(scheduled)
    data = json.loads(json.dumps(report.to_json()))
    assert data["dcac"] == {"matched": 1, "candidates": 1}
    for field in ("kernel_launches", "intermediate_bytes", "workspace_bytes"):
        assert set(data[field]) == {"default", "fused"}
    assert data["kernel_launches"]["fused"] == 1 < data["kernel_launches"]["default"]
    (verdict,) = data["verdicts"]
    assert (verdict["rule"], verdict["fused"], verdict["reason"]) == (DCAC, True, "")
    assert report.table()[0] == "dcac 1 of 1 blocks fused"
    report.require_all_blocks()
    assert report.fused == keep_account(scheduled, HOST.num_cores)
    assert report.default == lowered.fusion.default


def test_before_scheduling_the_workspace_is_not_known():
    report = lower_with_report(Block().module(), HOST, rules=[FuseDCAC()]).fusion
    assert "workspace_bytes" not in report.to_json()
    assert "workspace" not in report.table()[-1]
    assert "launches 1 (TVM alone" in report.table()[-1]


def test_a_missed_block_is_named_and_strict_makes_it_an_error():
    report = lower_with_report(Block(axis=2).module(), HOST, rules=all_rules()).fusion
    assert report.of_rule(DCAC) == (0, 1)
    assert "dcac 0 of 1 blocks fused" in report.table()
    assert any("softmax over axis 2" in line for line in report.table())
    with pytest.raises(FusionError, match="softmax over axis 2 of NCHW") as caught:
        report.require_all_blocks()
    assert caught.value.hint


def test_without_rules_every_block_is_missed_for_the_same_reason():
    report = lower_with_report(Block().module(), HOST, rules=()).fusion
    assert report.of_rule(DCAC) == (0, 1)
    assert report.verdicts[0].reason == "the rule is off"


def test_a_network_without_blocks_says_so():
    def body(e, x):
        return e.act(e.conv(e.act(e.conv(x, 8, 3)), 8, 3))

    report = lower_with_report(module(body, (1, 4, 8, 8)), HOST, rules=all_rules()).fusion
    assert report.table()[0] == "dcac 0 blocks"
    assert report.to_json()["dcac"] == {"matched": 0, "candidates": 0}
    report.require_all_blocks()


def test_more_launches_than_tvm_alone_are_explained():
    report = lower_with_report(Block().module(), HOST, rules=[FuseDCAC()]).fusion
    assert "in one layout" not in report.table()[-1]
    none = replace(report.default, kernel_launches=0)
    assert "(TVM alone 0, in one layout)" in replace(report, default=none).table()[-1]


def test_every_phase_is_dumped_numbered(tmp_path):
    lower(Block().module(), HOST, Dump(tmp_path), all_rules())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "00-canonical.py",
        "01-layout.py",
        "02-fold.py",
        "03-group.py",
        "04-legalize.py",
        "05-annotate.py",
        "06-lift.py",
        "07-fuse.py",
    ]
    assert "Composite" in (tmp_path / "03-group.py").read_text()
    assert "relax.nn" not in (tmp_path / "07-fuse.py").read_text()


def test_a_dump_takes_the_place_of_an_earlier_one(tmp_path):
    lower(Block().module(), HOST, Dump(tmp_path), all_rules())
    dump = Dump(tmp_path)
    assert list(tmp_path.iterdir()) == []
    dump.write("only", Block().module())
    assert [path.name for path in tmp_path.iterdir()] == ["00-only.py"]


def test_a_dump_does_not_touch_what_is_not_its_own(tmp_path):
    (tmp_path / "00-layout.py").write_text("of an earlier dump")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"`mine.txt`"):
        Dump(tmp_path)
    assert (tmp_path / "00-layout.py").is_file()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/dump", "/dev/full"])
def test_a_dump_that_cannot_be_written_is_told_at_once(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written") as told:
        Dump(Path(place))
    assert "--dump-ir" in told.value.hint


def test_half_a_phase_is_not_left(tmp_path, monkeypatch):
    dump = Dump(tmp_path)

    def full(path, *arguments, **options):
        with path.open("w") as stream:
            stream.write("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match=r"00-canonical\.py cannot be written: No space"):
        dump.write("canonical", Block().module())
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_a_hand_written_kernel():
    @T.prim_func(private=True, s_tir=True)
    def kernel(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
        with T.sblock("root"):
            middle = T.sblock_alloc_buffer((64,), "float32")
            for i in range(64):
                with T.sblock("middle"):
                    v = T.axis.spatial(64, i)
                    middle[v] = x[v] + T.float32(1)
            for i in range(64):
                with T.sblock("y"):
                    v = T.axis.spatial(64, i)
                    y[v] = middle[63 - v]

    builder = relax.BlockBuilder()
    gvar = builder.add_func(kernel, "kernel")
    x = relax.Var("x", relax.TensorType((64,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = relax.call_tir(gvar, [x], relax.TensorType((64,), "float32"))
            out = builder.emit_output(out)
        builder.emit_func_output(out)
    mod = tvm.IRModule(builder.get().functions)
    assert keep_account(mod, 4).workspace_bytes == 256 + keep_account(mod, 4).intermediate_bytes
