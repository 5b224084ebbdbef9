# SPDX-License-Identifier: Apache-2.0
"""From a network in any of its forms to one canonical Relax module.

Nothing heavy is imported here: a request can be checked before torch or TVM is.
"""

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from tvmattend.frontend.request import ModelRequest
from tvmattend.interrupts import kept

if TYPE_CHECKING:
    from tvmattend.frontend.imported import ImportedModel, TensorSpec

__all__ = ["ImportedModel", "ModelRequest", "TensorSpec", "import_model"]


def import_model(request: "ModelRequest | str") -> "ImportedModel":
    """Import a network: check the request, load it, and bring it into its canonical form.

    Args:
        request: What to import; a string stands for `ModelRequest(model=...)`.

    Raises:
        ModelError: The network is unknown, cannot be loaded, or cannot be exported.
        UnsupportedOperatorError: The importer does not know one of its operators.
        WeightsError: The weights cannot be read or belong to another network.
    """
    request = ModelRequest.of(request)
    request.check()
    # What a network prints is not a command's output, which may be JSON.
    with kept(), redirect_stdout(sys.stderr):
        from tvmattend.frontend.importing import import_checked

        return import_checked(request)


def __getattr__(name: str) -> object:
    if name in __all__:
        from tvmattend.frontend import imported

        return getattr(imported, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
