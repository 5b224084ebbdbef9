# SPDX-License-Identifier: Apache-2.0
"""Networks whose form is unusual in C: wide indices, views among the outputs, truth values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tvmattend.codegen import build
from tvmattend.errors import CompileError
from tvmattend.frontend import ModelRequest
from tvmattend.runtime import load
from tvmattend.target import host_target
from tvmattend.tuning import plan_tuning


class Net(nn.Module):
    """A function as a module."""

    input_shape = (16, 40, 41)  # enough for TVM to have kernels of one input in parallel

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def reflected() -> Net:
    return Net(lambda x: nn.functional.pad(x, (3, 3, 3, 3), mode="reflect"))


def enlarged() -> Net:
    return Net(lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))


def rolled() -> Net:
    return Net(lambda x: torch.roll(x, (5, -7), (2, 3)) * 2)


def with_a_view() -> Net:
    return Net(lambda x: (torch.relu(x), torch.relu(x).flatten(1), x.reshape(1, -1)))


def above_zero() -> Net:
    return Net(lambda x: (x > 0, x.relu()))


def parted() -> Net:
    """Both parts are outputs, and one goes on."""

    def forward(x: Tensor) -> Any:
        left, right = x.split([5, 11], 1)
        one, two = right.relu().chunk(2, -1)
        return left, right, nn.functional.silu(torch.cat([two, one], -1)) * right

    return Net(forward)


def wide() -> Net:
    """More columns than a table of scores may have."""
    return Net(lambda x: torch.relu(x).repeat(1, 10, 2, 2).flatten(1))


@pytest.mark.parametrize(
    "factory", [reflected, enlarged, rolled, with_a_view, above_zero, parted, wide]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_what_pytorch_does(
    factory: Callable[[], Net], threads: int, tmp_path: Path
) -> None:
    request = ModelRequest(f"{__name__}:{factory.__name__}")
    build(request, host_target(threads), output=tmp_path / "bundle", use_records=False)
    net = load(tmp_path / "bundle")
    net.self_test()
    x = np.random.default_rng(3).standard_normal(net.inputs[0].shape).astype("float32")
    wanted = factory()(torch.from_numpy(x))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    given = net(x)
    given = given if isinstance(given, tuple) else (given,)
    for one, other in zip(given, wanted, strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-6)


def test_what_tvm_cannot_lower_is_told_in_two_lines_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("a trace\nno such shape")

    monkeypatch.setattr("tvmattend.transform.lower_with_report", refuse)
    request = ModelRequest("attendnext_tiny")
    with pytest.raises(CompileError, match=r"TVM could not compile .*: no such shape") as caught:
        build(request, host_target(1), output=tmp_path / "bundle", use_records=False)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_tune_tells_it_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("a trace\nno such shape")

    monkeypatch.setattr("tvmattend.transform.lower_with_report", refuse)
    with pytest.raises(CompileError, match=r"TVM could not compile .*: no such shape"):
        plan_tuning("attendnext_tiny", host_target(1))
