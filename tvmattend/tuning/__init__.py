# SPDX-License-Identifier: Apache-2.0
"""Tuning: tasks of a network, trials on a machine, records that a build uses.

`tune` and what it returns are loaded on first use: reading records needs neither TVM nor torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "TuneOptions": "tvmattend.tuning.events",
    "TuneReport": "tvmattend.tuning.report",
    "tune": "tvmattend.tuning.session",
    "plan_tuning": "tvmattend.tuning.session",
}
__all__ = ["TuneOptions", "TuneReport", "plan_tuning", "tune"]  # noqa: F822  (see __getattr__)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
