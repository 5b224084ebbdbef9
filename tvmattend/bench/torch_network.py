# SPDX-License-Identifier: Apache-2.0
"""The network as PyTorch has it: what peers convert, and what outputs are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvmattend.errors import ModelError
from tvmattend.frontend.network import make_network
from tvmattend.frontend.pt2 import load_archive
from tvmattend.frontend.request import ModelRequest


def torch_module(request: ModelRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """Make the network in evaluation mode, with the request's weights.

    Returns:
        The module, and the shape of its one input with the batch in front.

    Raises:
        ModelError: The request is not of a PyTorch network with one image as its input.
        WeightsError: The weights do not fit.
    """
    if request.source == "onnx":
        raise ModelError(
            f"`{request.model}` is an ONNX file: the bench compares with PyTorch",
            "name a network, package.module:factory, or a .pt2 file",
        )
    if request.source == "pt2":
        return _from_archive(request)
    module, image = make_network(request)
    return module.eval(), (request.images, *image)


def samples(shape: tuple[int, ...], count: int) -> "list[np.ndarray[Any, Any]]":
    """Draw seeded inputs, standard normal float32, the same on every machine."""
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype("float32") for _ in range(count)]


def reference(
    request: ModelRequest, count: int
) -> "tuple[list[np.ndarray[Any, Any]], list[list[np.ndarray[Any, Any]]]]":
    """Draw inputs and run PyTorch, eager and fp32, on each.

    Returns:
        The inputs, and for each of them the outputs.
    """
    module, shape = torch_module(request)
    inputs = samples(shape, count)
    with torch.inference_mode():
        results = [module(torch.from_numpy(array)) for array in inputs]
    return inputs, [flat(result) for result in results]


def flat(result: Any) -> "list[np.ndarray[Any, Any]]":
    """Give the tensors of a network's result as arrays."""
    leaves = torch.utils._pytree.tree_leaves(result)  # noqa: SLF001  (torch.export's own order)
    return [tensor.detach().contiguous().numpy() for tensor in leaves]


def example(shape: tuple[int, ...]) -> torch.Tensor:
    """Give an input for tracing and exporting."""
    return torch.from_numpy(samples(shape, 1)[0])


def _from_archive(request: ModelRequest) -> tuple[nn.Module, tuple[int, ...]]:
    program = load_archive(Path(request.model))
    inputs = set(program.graph_signature.user_inputs)
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
    ]
    if len(shapes) != 1:
        raise ModelError(
            f"`{request.model}` takes {len(shapes)} inputs, and the bench gives one",
            "build it, and time the bundle with `tvmattend run BUNDLE --repeat N`",
        )
    if not all(isinstance(extent, int) for extent in shapes[0]):
        raise ModelError(
            f"`{request.model}` does not take one tensor of a fixed shape",
            "export it with a fixed shape to bench it",
        )
    # The guards of an archive are Python source; the shape is checked here anyway.
    return program.module(check_guards=False), shapes[0]
