# SPDX-License-Identifier: Apache-2.0
"""A name of the registry, or a factory -> an nn.Module with the request's weights."""

from torch import nn

from tvmattend.frontend.factory import input_size, make_module
from tvmattend.frontend.faults import in_memory
from tvmattend.frontend.request import ModelRequest
from tvmattend.frontend.weights import load_weights
from tvmattend.models import create, lookup


def make_network(request: ModelRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """Make the network of a request whose source is `registry` or `factory`.

    Returns:
        The network, and the shape of one image, (C, H, W).

    Raises:
        ModelError: It cannot be made.
        WeightsError: The weights cannot be read or belong to another network.
    """
    network: nn.Module
    image: tuple[int, ...]
    if request.source == "registry":
        architecture = lookup(request.model)
        with in_memory(f"`{request.model}` with a head of its --num-classes", "--num-classes"):
            network = create(architecture, request.num_classes, request.seed)
        size = architecture.input_size if request.input_size is None else request.input_size
        image = (3, size, size)
    else:
        network = make_module(request)
        image = input_size(network, request)
    if request.weights is not None:
        load_weights(network, request.weights, request.model)
    return network, image
