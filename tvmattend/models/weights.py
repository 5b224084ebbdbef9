# SPDX-License-Identifier: Apache-2.0
"""Seeded weights for networks whose trained weights nobody publishes.

A freshly initialised AttendNeXt is nearly degenerate: a softmax over C channels multiplies the
signal by about 1/C at every gate, and an identity BatchNorm hides a wrong fold. Here the
statistics are random (mean ~ N(0, 0.1), variance ~ U(0.5, 2)), no affine parameter is 0 or 1, and
every BatchNorm is scaled so that images of many contrasts leave it with a signal of the order 1
(C ahead of a softmax gate). Biases of half of that keep SiLU, which quarters a weak signal and
passes a strong one, from answering one photograph with logits of 0.1 and the next with thousands.
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
            _fill(module.bias, random.normal(0.0, 0.5, shape))
        elif isinstance(module, AttentionCondenser) and module.scale is not None:
            _fill(module.scale, random.uniform(0.5, 1.5))
    _scale_norms(network, seed)


def _scale_norms(network: AttendNeXt, seed: int) -> None:
    """Scale each BatchNorm by a power of two, from the signal that a few images cause.

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
        signal = output - norm.bias.view(-1, 1, 1)
        goal = wanted.get(id(norm), 1.0)
        factor = goal * 2.0 ** round(-math.log2(float(signal.std())))
        norm.weight.mul_(factor)
        norm.bias.mul_(goal)
        return signal * factor + norm.bias.view(-1, 1, 1)

    handles = [
        module.register_forward_hook(scale)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    was_training = network.training
    images = _images(_generator(seed, "images"), network.architecture.input_size)
    try:
        with torch.no_grad():
            network.eval()(torch.from_numpy(images.astype("float32")))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()


def _images(random: np.random.Generator, size: int) -> "np.ndarray[Any, Any]":
    """Patches of high and of low contrast, and noise: [3, 3, size, size].

    Neighbouring pixels of a photograph agree; noise alone the pools would average away.
    """
    patches = random.normal(0.0, 1.0, (3, 3, 4, 4)).repeat(size // 4 + 1, 2)
    patches = patches.repeat(size // 4 + 1, 3)[:, :, :size, :size]
    contrast = np.array([1.0, 0.3, 0.0]).reshape(3, 1, 1, 1)
    grain = np.array([0.3, 0.3, 1.0]).reshape(3, 1, 1, 1)
    return contrast * patches + grain * random.normal(0.0, 1.0, patches.shape)


def _generator(seed: int, path: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(path.encode())])


def _fill(tensor: Tensor | None, values: "np.ndarray[Any, Any] | float") -> None:
    assert tensor is not None  # noqa: S101  (BatchNorm2d types its buffers as optional)
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.asarray(values, "float32")))
