# SPDX-License-Identifier: Apache-2.0
"""Apply fusion rules: every accepted match becomes a function of its own, later one PrimFunc.

TVM's FuseOpsByPattern does the cutting, one variant at a time; which matches are accepted was
decided before by `judge`, so that the verdicts and the module cannot disagree.
"""

from collections.abc import Sequence
from typing import Any

from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.rule import FusionRule, Match, judge


def group(mod: Any, rules: Sequence[FusionRule]) -> Any:
    """Cut the accepted matches of every rule out of `main`.

    Args:
        mod: IRModule of operators; `main` is one dataflow block.
        rules: In order of priority: what one rule takes, a later one does not see.

    Returns:
        The module, in which every match is a call of a function with the attributes `Composite`
        (the rule's name) and `Primitive`.
    """
    for rule in rules:
        for variant in rule.variants():
            matches = [
                judgement.match
                for judgement in judge(rule, Dataflow(mod["main"]))
                if judgement.match is not None and judgement.match.variant == variant.name
            ]
            if matches:
                mod = _cut(mod, rule.name, variant.root, matches)
    return mod


def _cut(mod: Any, name: str, pattern: Any, matches: Sequence[Match]) -> Any:
    from tvm import relax

    roots = {match.root for match in matches}

    def accepted(context: Any) -> bool:
        return context.value_to_bound_var[context.matched_expr] in roots

    cut = relax.transform.FuseOpsByPattern(
        [(name, pattern, {}, accepted)], entry_functions=["main"]
    )
    return cut(mod)
