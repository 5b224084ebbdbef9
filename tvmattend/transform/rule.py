# SPDX-License-Identifier: Apache-2.0
"""What a fusion rule is, and the verdict that every candidate of a rule is given.

A rule is an equation in three methods: `candidates` lists where it might apply, `variants` gives
the patterns, `check` says why a matched subgraph may not become one kernel. A candidate that no
variant matches and no check explains is explained by `explain`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvmattend.expressions import static_shape
from tvmattend.transform.dataflow import Dataflow


@dataclass(frozen=True)
class Verdict:
    """What became of one candidate.

    Attributes:
        rule: The rule's name, e.g. `tvmattend.dcac`.
        subject: Variable of the canonical module at which the candidate ends.
        reason: Why it was not fused, in words; empty if it was.
        variant: Which of the rule's patterns matched; empty if none did.
    """

    rule: str
    subject: str
    reason: str = ""
    variant: str = ""

    @property
    def fused(self) -> bool:
        """Whether the candidate became one kernel."""
        return not self.reason

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "rule": self.rule,
            "subject": self.subject,
            "fused": self.fused,
            "variant": self.variant,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Variant:
    """One pattern of a rule.

    Attributes:
        name: Unique within the rule, e.g. `basic.condensed`.
        root: A `tvm.relax.dpl` pattern of the last operator.
        parts: Patterns within `root` by the name under which `check` asks for them.
    """

    name: str
    root: Any
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class Match:
    """A subgraph that a variant matches.

    Attributes:
        variant: The variant's name.
        root: Variable of its last operator.
        parts: Matched expressions by the names of the variant; an optional part may be missing.
        members: Variables of all operators in the subgraph, the root's among them.
        flow: The function that it lies in.
    """

    variant: str
    root: Any
    parts: Mapping[str, Any]
    members: tuple[Any, ...]
    flow: Dataflow

    def named(self, *names: str) -> list[Any]:
        """The parts of these names that are there."""
        return [self.parts[name] for name in names if name in self.parts]

    def inputs(self) -> list[Any]:
        """Variables that the subgraph reads and does not compute."""
        from tvm import relax

        inside = set(self.members)
        seen: dict[Any, None] = {}
        for member in self.members:
            for variable in relax.analysis.free_vars(self.flow.value(member)):
                if variable not in inside:
                    seen.setdefault(variable)
        return list(seen)


class FusionRule(ABC):
    """An equation whose left side becomes one kernel.

    Attributes:
        name: `tvmattend.<family>`.
        kernel: Prefix of the kernels' names.
    """

    name: str
    kernel: str

    @abstractmethod
    def candidates(self, flow: Dataflow) -> Iterator[Any]:
        """Variables at which the rule might apply, in order."""

    def roots(self, flow: Dataflow, candidate: Any) -> Sequence[Any]:
        """Variables at which a match of this candidate may end, the largest match first."""
        del flow
        return [candidate]

    @abstractmethod
    def variants(self) -> Sequence[Variant]:
        """Patterns; the first that matches and passes its check is taken."""

    @abstractmethod
    def check(self, match: Match) -> str:
        """Why the matched subgraph may not become one kernel; empty if it may."""

    def explain(self, flow: Dataflow, candidate: Any) -> str:
        """Why no variant matches the candidate."""
        del flow, candidate
        return "no pattern matches"


@dataclass(frozen=True)
class Judgement:
    """A candidate's verdict, with the match if it is to be fused."""

    verdict: Verdict
    candidate: Any
    match: Match | None = None


def judge(rule: FusionRule, flow: Dataflow, claimed: Iterable[Any] = ()) -> list[Judgement]:
    """Give every candidate of a rule its verdict.

    Args:
        rule: The rule.
        flow: The function.
        claimed: Variables that an earlier rule fuses; subgraphs that share one are passed over
            without a verdict.
    """
    taken = set(claimed)
    judgements = []
    variants = rule.variants()
    for candidate in rule.candidates(flow):
        if candidate in taken:
            continue
        judgement = _judge_one(rule, flow, candidate, variants, taken)
        if judgement.match is not None:
            taken.update(judgement.match.members)
        judgements.append(judgement)
    return judgements


def judge_all(rules: Sequence[FusionRule], flow: Dataflow) -> list[Judgement]:
    """Judge by every rule; an earlier rule's match takes precedence over a later one's."""
    judgements: list[Judgement] = []
    claimed: set[Any] = set()
    for rule in rules:
        for judgement in judge(rule, flow, claimed):
            judgements.append(judgement)
            if judgement.match is not None:
                claimed.update(judgement.match.members)
    return judgements


def _judge_one(
    rule: FusionRule, flow: Dataflow, candidate: Any, variants: Sequence[Variant], taken: set[Any]
) -> Judgement:
    reason = ""
    for root in rule.roots(flow, candidate):
        for variant in variants:
            match = find(variant, root, flow)
            if match is None or not taken.isdisjoint(match.members):
                continue
            fault = dynamic(match) or rule.check(match) or leak(match)
            if not fault:
                verdict = Verdict(rule.name, str(match.root.name), variant=variant.name)
                return Judgement(verdict, candidate, match)
            # The first variants describe the most; their reason is the one worth reading.
            reason = reason or fault
    reason = reason or rule.explain(flow, candidate)
    return Judgement(Verdict(rule.name, str(candidate.name), reason), candidate)


def find(variant: Variant, root: Any, flow: Dataflow) -> Match | None:
    """The subgraph that ends at a variable, if the variant matches it."""
    from tvm.relax import dpl

    matched = variant.root.extract_matched_expr(flow.value(root), flow.values)
    if matched is None:
        return None
    found = dict(matched.items())
    parts = {name: found[pattern] for name, pattern in variant.parts.items() if pattern in found}
    members = {
        flow.variable(expression): None
        for pattern, expression in found.items()
        if isinstance(pattern, dpl.CallPattern)
    }
    order = [variable for variable in flow.values if variable in members]
    return Match(variant.name, root, parts, tuple(order), flow)


def leak(match: Match) -> str:
    """Name an intermediate result that is read outside of the subgraph."""
    inside = set(match.members)
    for member in match.members:
        if member.same_as(match.root):
            continue
        if match.flow.is_output(member):
            return f"`{member.name}` is an output of the network too"
        for reader in match.flow.readers(member):
            if reader not in inside:
                return f"`{member.name}` has a second user, `{reader.name}`"
    return ""


def dynamic(match: Match) -> str:
    """Name a tensor whose shape is not known at compile time."""
    for variable in (*match.inputs(), *match.members):
        if static_shape(variable) is None:
            return f"`{variable.name}` has a dynamic shape"
    return ""
