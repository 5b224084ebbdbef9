# SPDX-License-Identifier: Apache-2.0
"""Relax passes: canonical IRModule -> IRModule of fused kernels, ready to be scheduled."""

from tvmattend.transform.fusion_report import FusionReport
from tvmattend.transform.pipeline import Lowered, lower, lower_with_report
from tvmattend.transform.rule import FusionRule, Verdict
from tvmattend.transform.rules import all_rules, default_rules

__all__ = [
    "FusionReport",
    "FusionRule",
    "Lowered",
    "Verdict",
    "all_rules",
    "default_rules",
    "lower",
    "lower_with_report",
]
