# SPDX-License-Identifier: Apache-2.0
"""Seeded weights for networks whose trained weights nobody publishes.

A freshly initialised AttendNeXt is nearly degenerate: a softmax over C channels multiplies the
signal by about 1/C at every gate, and an identity BatchNorm hides a wrong fold. Here the
statistics are random (mean ~ N(0, 0.1), variance ~ U(0.5, 2)), no affine parameter is 0 or 1, and
every BatchNorm is scaled so that its output is of the order 1 (C ahead of a softmax gate): the
logits are of the order 1 and depend on the input.
"""

import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvmattend.models.network import AttendNeXt, AttentionCondenser


def seed_weights(network: AttendNeXt, seed: int) -> None:
    """Fill every parameter and buffer in place, the same on every machine for a seed.

    Each tensor has a generator of its own, keyed by its path: the trunk's weights depend neither
    on the number of classes nor on the order of the modules. NumPy's generator, because PyTorch's
    gives other numbers with other vector extensions.
    """
    for path, module in network.named_modules():
        random = _generator(seed, path)
        if isinstance(module, nn.Conv2d | nn.Linear):
            deviation = 1.0 / math.sqrt(module.weight[0].numel())
            _fill(module.weight, random.normal(0.0, deviation, module.weight.shape))
            if module.bias is not None:
                _fill(module.bias, random.normal(0.0, 0.1, module.bias.shape))
        elif isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            _fill(module.running_mean, random.normal(0.0, 0.1, shape))
            _fill(module.running_var, random.uniform(0.5, 2.0, shape))
            _fill(module.weight, random.uniform(0.7, 1.3, shape))
            _fill(module.bias, random.normal(0.0, 0.1, shape))
        elif isinstance(module, AttentionCondenser) and module.scale is not None:
            _fill(module.scale, random.uniform(0.5, 1.5))
    _scale_norms(network, seed)


def _scale_norms(network: AttendNeXt, seed: int) -> None:
    """Scale each BatchNorm by a power of two, from the signal that one small image causes.

    A power of two is exact and does not see the rounding of a machine's convolutions.
    """
    wanted: dict[int, float] = {}
    for module in network.modules():
        if isinstance(module, AttentionCondenser) and module.gate == "softmax":
            # Below 1, or the softmax would select a single channel and drop all others.
            wanted[id(module.attention.expand.norm)] = 0.5
            wanted[id(module.project.norm)] = float(module.project.norm.num_features)

    def scale(norm: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
        assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
        factor = 2.0 ** round(math.log2(wanted.get(id(norm), 1.0) / float(output.std())))
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)
        return output * factor

    handles = [
        module.register_forward_hook(scale)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    was_training = network.training
    size = network.architecture.input_size
    image = _image(_generator(seed, "image"), size)
    try:
        with torch.no_grad():
            network.eval()(torch.from_numpy(image.astype("float32")))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()


def _image(random: np.random.Generator, size: int) -> "np.ndarray[Any, Any]":
    """Patches and noise [1, 3, size, size]: like a photograph, neighbouring pixels agree.

    Scaled by white noise, which the pools average away, the networks answer a photograph with
    logits in the thousands.
    """
    patches = random.normal(0.0, 1.0, (1, 3, 4, 4))
    rows = patches.repeat(size // 4 + 1, 2).repeat(size // 4 + 1, 3)
    return rows[:, :, :size, :size] + random.normal(0.0, 0.3, (1, 3, size, size))


def _generator(seed: int, path: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(path.encode())])


def _fill(tensor: Tensor | None, values: "np.ndarray[Any, Any] | float") -> None:
    assert tensor is not None  # noqa: S101  (BatchNorm2d types its buffers as optional)
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.asarray(values, "float32")))
