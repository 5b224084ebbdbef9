# SPDX-License-Identifier: Apache-2.0
"""The fusion report: what was fused, why the rest was not, and what that is worth."""

from dataclasses import dataclass, replace
from typing import Any

from tvmattend.errors import FusionError
from tvmattend.transform.ledger import Ledger, keep_account
from tvmattend.transform.rule import Verdict
from tvmattend.transform.rules import DCAC


@dataclass(frozen=True)
class FusionReport:
    """What fusion did to one network.

    Attributes:
        verdicts: One a candidate, in the order of the rules and of the network.
        default: The account of TVM's own FuseOps on the same canonical module.
        fused: The account of the module that is built.
        threads: Threads of an inference.
        scheduled: Whether `fused` knows the schedules; before that, a kernel's scratch memory is
            not known.
    """

    verdicts: tuple[Verdict, ...]
    default: Ledger
    fused: Ledger
    threads: int
    scheduled: bool = False

    def of_scheduled(self, mod: Any) -> "FusionReport":
        """The report with the account of the scheduled module, whose scratch memory is known."""
        return replace(self, fused=keep_account(mod, self.threads), scheduled=True)

    def of_rule(self, name: str) -> tuple[int, int]:
        """Matched and candidates of one rule."""
        mine = [verdict for verdict in self.verdicts if verdict.rule == name]
        return sum(verdict.fused for verdict in mine), len(mine)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest and `--json`."""
        names = dict.fromkeys(verdict.rule for verdict in self.verdicts)
        before, after = self.default.to_json(), self.fused.to_json()
        account = {key: {"default": before[key], "fused": after[key]} for key in before}
        if not self.scheduled:
            del account["workspace_bytes"]
        return {
            "dcac": _counts(self.of_rule(DCAC)),
            "rules": {name: _counts(self.of_rule(name)) for name in names},
            **account,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }

    def table(self) -> list[str]:
        """Lines for a person: one a rule, one a rejection, one for the account."""
        matched, candidates = self.of_rule(DCAC)
        blocks = f"{matched} of {candidates} blocks fused" if candidates else "0 blocks"
        lines = [f"dcac {blocks}"]
        for name in dict.fromkeys(verdict.rule for verdict in self.verdicts):
            if name != DCAC:
                mine, all_of_it = self.of_rule(name)
                lines.append(f"{_short(name)} {mine} of {all_of_it} fused")
        missed: dict[tuple[str, str], list[str]] = {}
        for verdict in self.verdicts:
            if not verdict.fused:
                missed.setdefault((verdict.rule, verdict.reason), []).append(verdict.subject)
        lines += [
            f"{_short(rule)} not at {', '.join(f'`{subject}`' for subject in subjects)}: {reason}"
            for (rule, reason), subjects in missed.items()
        ]
        before, after = self.default, self.fused
        # TVM alone keeps the importer's layout throughout.
        more = after.kernel_launches > before.kernel_launches
        alone = f"TVM alone {before.kernel_launches}" + (", in one layout" if more else "")
        account = (
            f"launches {after.kernel_launches} ({alone}), between "
            f"kernels {_megabytes(after.intermediate_bytes)} "
            f"({_megabytes(before.intermediate_bytes)})"
        )
        if self.scheduled:
            account += (
                f", workspace {_megabytes(after.workspace_bytes)} "
                f"({_megabytes(before.workspace_bytes)})"
            )
        return [*lines, account]

    def require_all_blocks(self) -> None:
        """Hold `--strict-fusion`.

        Raises:
            FusionError: A DC-AC block was not fused; the message names the first.
        """
        missed = [v for v in self.verdicts if v.rule == DCAC and not v.fused]
        if missed:
            blocks = "1 DC-AC block is" if len(missed) == 1 else f"{len(missed)} DC-AC blocks are"
            first = f"{', first' if len(missed) > 1 else ':'} `{missed[0].subject}`"
            raise FusionError(
                f"{blocks} not fused{first}: {missed[0].reason}",
                "change the network so that the block matches, or leave out --strict-fusion",
            )


def _counts(pair: tuple[int, int]) -> dict[str, int]:
    return {"matched": pair[0], "candidates": pair[1]}


def _short(rule: str) -> str:
    return rule.rpartition(".")[2]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
