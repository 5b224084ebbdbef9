# SPDX-License-Identifier: Apache-2.0
"""The block's equations, its flavours, and weights that a wrong compiler cannot hide behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional

from tvmattend.models import CLASSICAL, REGISTRY, Condenser, create, lookup
from tvmattend.models.network import AttentionCondenser

FLAVOURS = [
    Condenser(),
    CLASSICAL,
    Condenser(condense="max"),
    Condenser(gate="sigmoid", residual=True),
    Condenser(expand="nearest"),
    Condenser(scale=True),
]


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Coloured patches under noise, as the frontend's sample inputs are."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(patches, (size, size), mode="nearest")
    return smooth + 0.3 * torch.randn(count, 3, size, size, generator=generator)


def photographs(size: int) -> torch.Tensor:
    pictures = [
        np.asarray(Image.fromarray(load_sample_image(name)).resize((size, size))) / 255
        for name in ("china.jpg", "flower.jpg")
    ]
    normalised = (np.stack(pictures) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalised.transpose(0, 3, 1, 2).astype("float32"))


@pytest.mark.parametrize("name", REGISTRY)
def test_logits_of_photographs_and_noise_are_moderate_and_differ(name: str) -> None:
    network = create(name)
    assert not network.training
    size = network.input_shape[-1]
    with torch.no_grad():
        china, flower, noise, more = network(torch.cat([photographs(size), images(2, size)]))
    assert china.shape == (lookup(name).classes,)
    for logits in (china, flower, noise):
        assert 0.5 < float(logits.abs().max()) < 60
    assert float((china - flower).abs().max()) > 0.2 * float(china.abs().max())
    assert float((china - noise).abs().max()) > 0.2 * float(china.abs().max())
    assert float((noise - more).abs().max()) > 0.003 * float(noise.abs().max())


@pytest.mark.parametrize("name", ["attendnext", "attendnext_tiny", "attendnext_tiny_condenser"])
def test_single_precision_is_enough_for_the_tolerance(name: str) -> None:
    network = create(name)
    x = photographs(network.input_shape[-1])
    with torch.no_grad():
        single = network(x)
        double = network.double()(x.double())
    assert float((single - double).abs().max() / double.abs().max()) < 5e-6


def test_statistics_and_affine_parameters_are_not_trivial() -> None:
    network = create("attendnext_xs")
    for path, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert 0.02 < float(module.running_mean.std()) < 0.2, path
            assert float(module.running_var.min()) >= 0.5, path
            assert float(module.running_var.max()) <= 2.0, path
            assert float(module.weight.detach().std()) > 0, path
            assert float(module.bias.detach().std()) > 0, path


def test_every_gate_matters() -> None:
    """Half of the channels of each gate's attention branch can be felt in the logits."""
    network = create("attendnext")
    x = photographs(224)
    with torch.no_grad():
        logits = network(x)
        for module in network.modules():
            if isinstance(module, AttentionCondenser):
                kept = module.attention.expand.norm.bias.clone()
                module.attention.expand.norm.bias[::2] += 0.5
                moved = float((network(x) - logits).abs().max() / logits.abs().max())
                module.attention.expand.norm.bias.copy_(kept)
                assert moved > 1e-3


def test_a_seed_gives_the_same_weights_and_another_gives_others() -> None:
    first, again, other = (
        create("attendnext_tiny"),
        create("attendnext_tiny"),
        create("attendnext_tiny", seed=1),
    )
    state, same, different = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(state[key], same[key]) for key in state)
    assert not torch.equal(state["head.weight"], different["head.weight"])


def test_the_head_does_not_change_the_trunk() -> None:
    state = create("attendnext_tiny").state_dict()
    small = create("attendnext_tiny", num_classes=3).state_dict()
    assert small["head.weight"].shape[0] == 3
    trunk = [key for key in state if not key.startswith("head.")]
    assert all(torch.equal(state[key], small[key]) for key in trunk)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("stem.expand.conv.weight", [0.16239672899246216, 0.00765888812020421]),
        ("stages.3.0.project.norm.weight", [154.07147216796875, 136.01397705078125]),
        ("head.bias", [-0.03089139796793461, 0.07799024134874344]),
    ],
)
def test_a_seed_stands_for_the_same_numbers_for_ever(key: str, values: list[float]) -> None:
    """Golden vectors that lie in bundles name only the seed."""
    tensor = create("attendnext_tiny").state_dict()[key]
    assert tensor.flatten()[:2].tolist() == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("condenser", FLAVOURS, ids=str)
def test_block_follows_its_equation(condenser: Condenser) -> None:
    """out = act(gate(A) * B [* S] [+ B]), both branches from the pooled input."""
    network = create(replace(lookup("attendnext_tiny"), condenser=condenser))
    block = network.stages[1][0]
    assert isinstance(block, AttentionCondenser)
    pool = functional.avg_pool2d if condenser.condense == "avg" else functional.max_pool2d
    x = images(2, 16)[:, :1].expand(-1, 12, -1, -1).contiguous()

    def unit(layer: nn.Module, value: torch.Tensor) -> torch.Tensor:
        return layer.norm(layer.conv(value))

    with torch.no_grad():
        pooled = pool(x, 2)
        branch = block.attention
        if condenser.expand == "nearest":
            key = functional.silu(unit(branch.embed, pool(pooled, 2)))
            key = functional.silu(unit(branch.mix, key))
            attention = unit(branch.expand, key.repeat_interleave(2, 2).repeat_interleave(2, 3))
        else:
            attention = unit(branch.expand, functional.silu(unit(branch.embed, pooled)))
        features = unit(block.project, pooled)
        gate = attention.softmax(1) if condenser.gate == "softmax" else attention.sigmoid()
        expected = gate * features
        if condenser.scale:
            assert block.scale is not None
            assert float(block.scale.detach()) != 1.0
            expected = expected * block.scale
        expected = functional.silu(expected + features if condenser.residual else expected)
        actual = block(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_columns_are_independent_in_a_basic_attention_branch() -> None:
    block = create("attendnext").stages[0][0]
    x = images(1, 8)[:, :1].expand(-1, 32, -1, -1).contiguous()
    other = x.clone()
    other[:, :8] += 1.0  # the first of four columns
    with torch.no_grad():
        changed = (block.attention(x) != block.attention(other)).flatten(2).any(2)[0]
    assert changed[:10].all()
    assert not changed[10:].any()


@pytest.mark.parametrize("condenser", FLAVOURS, ids=str)
@pytest.mark.parametrize("size", [61, 75])
def test_odd_inputs_pass_through_every_flavour(condenser: Condenser, size: int) -> None:
    network = create(replace(lookup("attendnext_tiny"), condenser=condenser))
    with torch.no_grad():
        assert network(images(1, size)).isfinite().all()
