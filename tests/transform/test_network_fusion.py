# SPDX-License-Identifier: Apache-2.0
"""Whole networks: every DC-AC block of every network fuses, within the issue's bounds."""

from functools import cache

import pytest
from relax_blocks import HOST, relative, run

from tvmattend.frontend import ModelRequest, import_model
from tvmattend.models import REGISTRY
from tvmattend.target import parse_target
from tvmattend.transform import all_rules, default_rules, lower, lower_with_report
from tvmattend.transform.rules import DCAC
from tvmattend.tuning.tasks import extract_tasks

A72 = parse_target("cortex-a72")


@cache
def network(name, **changes):
    """An imported network; importing is most of a test's time."""
    return import_model(ModelRequest(name, **changes))


@cache
def fusion(name, rules=None, **changes):
    return lower_with_report(network(name, **changes).ir_module, A72, rules=rules).fusion


def within_bounds(report):
    """The issue's: every block, 23 launches, half of the traffic."""
    assert report.of_rule(DCAC) == (4, 4), report.table()
    report.require_all_blocks()
    assert report.fused.kernel_launches <= 23 < report.default.kernel_launches
    assert report.fused.intermediate_bytes * 2 <= report.default.intermediate_bytes


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_block_of_every_network_is_one_kernel(name):
    within_bounds(fusion(name))


@pytest.mark.parametrize(
    ("name", "batch", "size"),
    [("attendnext", 4, 192), ("attendnext_deep", 1, 256), ("attendnext_tiny_condenser", 4, 224)],
)
def test_every_block_at_other_batches_and_sizes(name, batch, size):
    """`benchmarks/fusion_ledger.py` has all of them."""
    within_bounds(fusion(name, batch=batch, input_size=size))


def test_attendnext_has_a_kernel_for_each_block_and_its_ends():
    report = fusion("attendnext")
    assert report.default.kernel_launches == 43
    # Ten blocks, the stem and the head.
    assert report.fused.kernel_launches == 12


def test_no_rules_is_what_tvm_does_but_for_changes_of_layout():
    report = fusion("attendnext_tiny", ())
    changes = report.fused.kernel_launches - report.default.kernel_launches
    assert 0 <= changes <= 3


@pytest.mark.parametrize(
    ("name", "rules"),
    [("attendnext_tiny", all_rules), ("attendnext_tiny_condenser", default_rules)],
)
def test_the_fused_network_computes_what_pytorch_computes(name, rules):
    imported = network(name)
    (inputs,) = imported.sample_inputs(1, seed=5)
    fused = run(lower(imported.ir_module, HOST, rules=rules()), *inputs)
    unfused = run(lower(imported.ir_module, HOST, rules=()), *inputs)
    (wanted,) = imported.reference(inputs)
    assert relative(fused, unfused) < 1e-5
    assert relative(fused, wanted) < 1e-4


@pytest.mark.parametrize("target", ["cortex-a72", "host"])
@pytest.mark.parametrize("name", ["attendnext_tiny", "attendnext_tiny_condenser"])
@pytest.mark.parametrize("rules", [default_rules, all_rules])
def test_every_fused_kernel_has_a_design_space(name, target, rules):
    spec = parse_target(target)
    lowered = lower(network(name).ir_module, spec, rules=rules())
    plain = [task.name for task in extract_tasks(lowered, spec) if task.space.kernel == "plain"]
    assert plain == []


def test_the_verdicts_speak_the_networks_language():
    subjects = [v.subject for v in fusion("attendnext_tiny").verdicts if v.rule == DCAC]
    assert subjects == [f"stages_{stage}_0_silu" for stage in range(4)]
