# SPDX-License-Identifier: Apache-2.0
"""tvmattend: from a PyTorch attention-condenser network to a tuned library on an Arm board.

The verbs of the Python API are loaded on first use, so that importing the package costs nothing:

    from tvmattend import import_model, tune, build, load
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "import_model": "tvmattend.frontend",
    "tune": "tvmattend.tuning",
    "build": "tvmattend.codegen",
    "load": "tvmattend.runtime",
}
__all__ = ["build", "import_model", "load", "tune"]  # noqa: F822  (resolved by __getattr__)


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
