# SPDX-License-Identifier: Apache-2.0
"""The one ordered list of passes between the canonical module and the kernels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from schedules.machines import machine_of
from tvmattend.target import TargetSpec
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.dump import Dump
from tvmattend.transform.fusion_report import FusionReport
from tvmattend.transform.grouping import group
from tvmattend.transform.layout import assign_layouts
from tvmattend.transform.ledger import keep_account, lower_by_default
from tvmattend.transform.legalize import legalizations
from tvmattend.transform.lift_constants import lift_constants
from tvmattend.transform.rule import FusionRule, Judgement, Match, Verdict, judge_all
from tvmattend.transform.rules import DCAC, all_rules, default_rules
from tvmattend.transform.widen_scalars import widen_scalars

Phase = tuple[str, Callable[[Any], Any]]


def phases(target: TargetSpec, rules: Sequence[FusionRule] = ()) -> list[Phase]:
    """Name and function of every phase, in order.

    Args:
        target: Decides layouts, packing and register blocks.
        rules: Fusion rules in order of priority.
    """
    import tvm
    from tvm import relax

    machine = machine_of(target.to_tvm())
    passes = relax.transform

    def run(*steps: Any) -> Callable[[Any], Any]:
        sequence: Callable[[Any], Any] = tvm.transform.Sequential(steps)
        return sequence

    def layout(mod: Any) -> Any:
        # Of blocks that rules would fuse, whether they do or not: builds with fusion and without
        # then have the same layouts, and what fusion is worth is fusion's alone.
        matches = _matches(mod, default_rules())
        mod = assign_layouts(mod, machine, [match.members for match in matches])
        # Each reader of a map brings a change of layout of its own.
        return run(passes.EliminateCommonSubexpr())(mod)

    return [
        # First, while convolutions are still operators with a layout attribute.
        ("layout", layout),
        # The layout pass leaves transposed constants (biases); fold them while they are operators.
        ("fold", run(passes.FoldConstant())),
        # Patterns match operators; after the layouts, so that no change of one lies in a match.
        *([("group", lambda mod: widen_scalars(group(mod, rules)))] if rules else []),
        # Packs the weights, so it needs them constant and in OIHW.
        ("legalize", run(passes.LegalizeOps(legalizations(machine)))),
        # Fusion reads the patterns that AnnotateTIROpPattern finds in the PrimFuncs.
        ("annotate", run(passes.AnnotateTIROpPattern(), passes.FoldConstant())),
        # FuseTIR takes no constants; behind the packing, which needs them.
        *(
            [("lift", lambda mod: lift_constants(mod, {rule.name: rule.kernel for rule in rules}))]
            if rules
            else []
        ),
        # What no rule took is fused by TVM: bias, activation and residual into their convolution.
        ("fuse", run(passes.FuseOps(), passes.FuseTIR(), passes.DeadCodeElimination())),
    ]


@dataclass(frozen=True)
class Lowered:
    """A network as kernels, and the account of it.

    Attributes:
        mod: IRModule whose `main` calls one PrimFunc a kernel.
        fusion: What was fused and what that is worth.
        stages: The canonical module, then the module after each phase; `mod` is the last.
    """

    mod: Any
    fusion: FusionReport
    stages: tuple[Any, ...] = ()


def lower(
    mod: Any,
    target: TargetSpec,
    dump: Dump | None = None,
    rules: Sequence[FusionRule] | None = None,
) -> Any:
    """Canonical IRModule -> IRModule whose `main` calls one PrimFunc a kernel.

    Args:
        mod: Canonical IRModule of `tvmattend.frontend`, weights as constants.
        target: Decides layouts, packing and register blocks.
        dump: Receives the module as it comes and after each phase.
        rules: Fusion rules; None for the default ones, an empty sequence for none.
    """
    return _lower(mod, target, dump, default_rules() if rules is None else rules)[0][-1]


def lower_with_report(
    mod: Any,
    target: TargetSpec,
    dump: Dump | None = None,
    rules: Sequence[FusionRule] | None = None,
) -> Lowered:
    """Lower as `lower` does, and account for it.

    Tune and build both come through here, so that their kernels have the same structural hash.

    Args:
        mod: As for `lower`.
        target: As for `lower`.
        dump: As for `lower`.
        rules: As for `lower`.
    """
    rules = default_rules() if rules is None else rules
    stages, ungrouped = _lower(mod, target, dump, rules)
    with target.to_tvm():
        default = lower_by_default(mod)
    report = FusionReport(
        tuple(_verdicts(mod, ungrouped, rules)),
        keep_account(default, target.num_cores),
        keep_account(stages[-1], target.num_cores),
        target.num_cores,
    )
    return Lowered(stages[-1], report, stages)


def _lower(
    mod: Any, target: TargetSpec, dump: Dump | None, rules: Sequence[FusionRule]
) -> tuple[tuple[Any, ...], Any]:
    """The module before and after each phase, and the module as the rules found it."""
    ungrouped, stages = mod, [mod]
    if dump is not None:
        dump.write("canonical", mod)
    with target.to_tvm():
        for name, phase in phases(target, rules):
            if name == "group":
                ungrouped = mod
            mod = phase(mod)
            stages.append(mod)
            if dump is not None:
                dump.write(name, mod)
    return tuple(stages), ungrouped


def _verdicts(mod: Any, ungrouped: Any, rules: Sequence[FusionRule]) -> list[Verdict]:
    """A verdict for every candidate in the canonical module, of DC-AC even if the rule is off.

    A candidate that matches there and no longer does behind the layout pass is not fused.
    """
    before, behind = ([j.verdict for j in _judge(module, rules)] for module in (mod, ungrouped))
    found = []
    for rule in rules:
        first, last = ([v for v in some if v.rule == rule.name] for some in (before, behind))
        # Bindings keep their order; their names change where the layout of an output does.
        by_name = {verdict.subject: verdict for verdict in last}
        others = last if len(last) == len(first) else [by_name.get(v.subject) for v in first]
        for verdict, other in zip(first, others, strict=True):
            lost = verdict.fused and (other is None or not other.fused)
            reason = "a change of layout lies inside" if other is None else other.reason
            found.append(replace(verdict, variant="", reason=reason) if lost else verdict)
    if not any(rule.name == DCAC for rule in rules):
        (off,) = (rule for rule in all_rules() if rule.name == DCAC)
        missed = [judgement.verdict for judgement in _judge(mod, [off])]
        found = [
            replace(verdict, reason="the rule is off", variant="") for verdict in missed
        ] + found
    return found


def _judge(mod: Any, rules: Sequence[FusionRule]) -> list[Judgement]:
    return judge_all(rules, Dataflow(mod["main"]))


def _matches(mod: Any, rules: Sequence[FusionRule]) -> list[Match]:
    return [judgement.match for judgement in _judge(mod, rules) if judgement.match is not None]
