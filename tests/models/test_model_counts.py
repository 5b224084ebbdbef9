# SPDX-License-Identifier: Apache-2.0
"""Published counts, and that the counts made from the data are those of the module."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tvmattend.errors import ModelError
from tvmattend.models import (
    REGISTRY,
    Architecture,
    Condenser,
    Stage,
    create,
    layers,
    lookup,
    macs,
    minimal_input_size,
    parameters,
)


@pytest.mark.parametrize(
    ("name", "count", "mega_macs"),
    [
        ("attendnext", 3_924_704, 389.09),
        ("attendnext_xs", 2_376_600, 319.70),
        ("attendnext_deep", 3_933_124, 573.17),
    ],
)
def test_counts_are_the_published_ones(name: str, count: int, mega_macs: float) -> None:
    architecture = lookup(name)
    assert parameters(architecture) == count
    assert round(macs(architecture) / 1e6, 2) == mega_macs


def test_xs_with_one_class_is_the_published_dc_ac_network() -> None:
    xs = lookup("attendnext_xs")
    assert parameters(xs, 1) == 1_632_345
    assert round(macs(xs, 1) / 1e6, 2) == 318.95


@pytest.mark.parametrize("name", REGISTRY)
def test_counts_from_data_agree_with_the_module(name: str) -> None:
    architecture = lookup(name)
    network = create(name)
    assert sum(p.numel() for p in network.parameters()) == parameters(architecture)

    modules = dict(network.named_modules())
    sizes: dict[str, int] = {}
    for path, module in modules.items():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, __, out, path=path: sizes.__setitem__(path, out.shape[-1])
            )
    with torch.no_grad():
        network(torch.zeros(network.input_shape))

    listed = {layer.path: layer for layer in layers(architecture)}
    convolutions = {p for p, m in modules.items() if isinstance(m, nn.Conv2d)}
    assert convolutions | {"head"} == set(listed)
    for path in convolutions:
        layer, conv = listed[path], modules[path]
        assert (layer.channels_in, layer.channels) == (conv.in_channels, conv.out_channels), path
        assert (layer.kernel, layer.groups) == (conv.kernel_size[0], conv.groups), path
        assert layer.size == sizes[path], path


@pytest.mark.parametrize("name", ["attendnext", "attendnext_tiny", "attendnext_tiny_condenser"])
def test_the_smallest_input_is_exactly_the_smallest(name: str) -> None:
    architecture = lookup(name)
    least = minimal_input_size(architecture)
    with torch.no_grad():
        output = create(name)(torch.zeros(1, 3, least, least))
    assert output.isfinite().all()
    assert macs(architecture, input_size=least) > 0
    with pytest.raises(ModelError, match="pixels") as caught:
        layers(architecture, input_size=least - 1)
    assert str(least) in caught.value.hint


def test_columns_of_tiny_are_no_multiple_of_a_vector() -> None:
    tiny = lookup("attendnext_tiny")
    columns = [stage.width // tiny.columns for stage in tiny.stages]
    assert all(count % 4 for count in columns)
    assert [stage.blocks for stage in tiny.stages] == [1, 1, 1, 1]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError) as caught:
        lookup("atendnext-xs")
    assert "attendnext_xs" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        lookup("resnet")
    assert all(name in caught.value.hint for name in REGISTRY)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Condenser(condense="sum"),  # type: ignore[arg-type]
        lambda: Condenser(gate="tanh"),  # type: ignore[arg-type]
        lambda: Condenser(expand="linear"),  # type: ignore[arg-type]
        lambda: Stage("dense", 8, 8, 1),  # type: ignore[arg-type]
        lambda: Stage("basic", 8, 16, 1),
        lambda: Stage("basic", 8, 8, 0),
        lambda: Architecture("x", "", 8, (Stage("basic", 10, 10, 1),)),
        lambda: Architecture("x", "", 6, (Stage("basic", 8, 8, 1),)),
    ],
)
def test_a_wrong_architecture_cannot_be_made(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"condenser|stage|columns"):
        make()


def test_counting_needs_no_torch() -> None:
    code = (
        "import sys, tvmattend.models as m; [m.macs(a) for a in m.REGISTRY.values()];"
        "sys.exit('torch' in sys.modules or 'tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
