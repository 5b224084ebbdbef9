# SPDX-License-Identifier: Apache-2.0
"""AttendNeXt: architectures as data, counted without torch, built with it."""

from typing import TYPE_CHECKING

from tvmattend.models.architecture import (
    CLASSICAL,
    DOUBLE_CONDENSING,
    Architecture,
    Condenser,
    Stage,
)
from tvmattend.models.counting import Layer, layers, macs, minimal_input_size, parameters
from tvmattend.models.registry import DEFAULT, REGISTRY, lookup

if TYPE_CHECKING:
    from tvmattend.models.network import AttendNeXt

__all__ = [
    "CLASSICAL",
    "DEFAULT",
    "DOUBLE_CONDENSING",
    "REGISTRY",
    "Architecture",
    "Condenser",
    "Layer",
    "Stage",
    "create",
    "layers",
    "lookup",
    "macs",
    "minimal_input_size",
    "parameters",
]


def create(
    architecture: str | Architecture, num_classes: int | None = None, seed: int = 0
) -> "AttendNeXt":
    """Build a network with seeded weights and BatchNorm statistics, in evaluation mode.

    Args:
        architecture: A name of the registry, or an architecture of your own.
        num_classes: Classes of the head; the architecture's own when None.
        seed: Of the weights; the same seed gives the same weights on every machine.

    Raises:
        ModelError: The registry has no such name.
    """
    from tvmattend.models.network import AttendNeXt
    from tvmattend.models.weights import seed_weights

    data = lookup(architecture) if isinstance(architecture, str) else architecture
    network = AttendNeXt(data, num_classes)
    seed_weights(network, seed)
    return network.eval()
