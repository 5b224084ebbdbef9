# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture(scope="session")
def tiny_module():
    """The canonical IRModule of the smallest network."""
    from tvmattend.frontend import import_model

    return import_model("attendnext_tiny").ir_module
