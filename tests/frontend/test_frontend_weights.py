# SPDX-License-Identifier: Apache-2.0
"""Weights: what fits is loaded, what does not is named, what is code is not run."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from tvmattend.errors import WeightsError
from tvmattend.frontend import ModelRequest, import_model
from tvmattend.frontend.weights import load_weights, sha256
from tvmattend.models import create

State = dict[str, Tensor]


def tiny_state(seed: int = 5) -> State:
    return dict(create("attendnext_tiny", seed=seed).state_dict())


def refuse(state: Any, path: Path) -> WeightsError:
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(create("attendnext_tiny"), path, "attendnext_tiny")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_weights_arrive_in_the_imported_network(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"trained{suffix}"
    state = tiny_state()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    model = import_model(ModelRequest("attendnext_tiny", weights=path))
    (inputs,) = model.sample_inputs(1)
    with torch.no_grad():
        expected = create("attendnext_tiny", seed=5)(torch.from_numpy(inputs[0])).numpy()
    assert np.array_equal(model.reference(inputs)[0], expected)
    assert model.weights == f"`trained{suffix}`"
    assert model.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.seed is None


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_a_checkpoint_of_training_is_looked_into(key: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}
    torch.save({key: tiny_state(), "epoch": 3, "optimizer": optimizer, "scaler": {}}, path)
    network = create("attendnext_tiny")
    load_weights(network, path, "attendnext_tiny")
    assert torch.equal(network.head.weight, tiny_state()["head.weight"])


def test_of_several_state_dicts_the_one_of_that_name_is_taken_or_all_are_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoint.pt"
    error = refuse({"model": tiny_state(), "ema": tiny_state(6)}, path)
    assert "several state dicts: `model`, `ema`" in str(error)
    torch.save({"ema": tiny_state(6), "state_dict": tiny_state()}, path)
    network = create("attendnext_tiny")
    load_weights(network, path, "attendnext_tiny")
    assert torch.equal(network.head.weight, tiny_state()["head.weight"])


def test_torchscript_is_no_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "jit.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))  # type: ignore[no-untyped-call]
    with pytest.raises(WeightsError, match="is a TorchScript program") as caught:
        load_weights(nn.Linear(2, 2), path, "linear")
    assert "torch.jit.load(path).state_dict()" in caught.value.hint


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    state = tiny_state()
    state["head.bias"][3] = torch.nan
    path = tmp_path / "w.pt"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"`head\.bias` of `attendnext_tiny` holds NaN"):
        import_model(ModelRequest("attendnext_tiny", weights=path))


def test_counters_of_training_may_be_missing_or_extra(tmp_path: Path) -> None:
    state = {k: v for k, v in tiny_state().items() if not k.endswith("num_batches_tracked")}
    state["other.num_batches_tracked"] = torch.tensor(3)
    path = tmp_path / "w.pt"
    torch.save(state, path)
    network = create("attendnext_tiny")
    load_weights(network, path, "attendnext_tiny")
    assert torch.equal(network.head.weight, state["head.weight"])


def test_tied_weights_may_have_one_name_in_the_file(tmp_path: Path) -> None:
    """As `safetensors.torch.save_model` writes them."""

    def tied() -> nn.Sequential:
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        network[1].weight = network[0].weight
        return network

    path, trained, network = tmp_path / "w.safetensors", tied(), tied()
    save_model(trained, str(path))
    assert len(load_file(path)) == 3
    load_weights(network, path, "tied")
    x = torch.ones(1, 4)
    assert torch.equal(network(x), trained(x))
    save_file({key: tensor for key, tensor in load_file(path).items() if "0" not in key}, path)
    with pytest.raises(WeightsError, match=r"it lacks `0\."):
        load_weights(network, path, "tied")


def test_half_precision_weights_become_single(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in tiny_state().items()}, path)
    network = create("attendnext_tiny")
    load_weights(network, path, "attendnext_tiny")
    assert network.head.weight.dtype == torch.float32


def test_another_network_is_named_by_its_first_mismatch(tmp_path: Path) -> None:
    error = refuse(dict(create("attendnext_xs").state_dict()), tmp_path / "xs.pt")
    assert "does not fit attendnext_tiny" in str(error)
    assert "`stem.expand.conv.weight` is [32, 3, 3, 3] in the file" in str(error)
    assert "[8, 3, 3, 3] in the network" in str(error)


def test_the_first_missing_entry_is_named(tmp_path: Path) -> None:
    state = tiny_state()
    del state["stages.1.0.project.norm.bias"], state["stages.3.0.project.norm.bias"]
    error = refuse(state, tmp_path / "w.pt")
    assert "it lacks `stages.1.0.project.norm.bias` [20]" in str(error)


def test_an_entry_too_many_is_named(tmp_path: Path) -> None:
    error = refuse({**tiny_state(), "extra.weight": torch.zeros(2, 3)}, tmp_path / "w.pt")
    assert "the network has no `extra.weight` [2, 3]" in str(error)


def test_another_number_of_classes_says_which_option(tmp_path: Path) -> None:
    state = dict(create("attendnext_tiny", num_classes=3).state_dict())
    error = refuse(state, tmp_path / "w.pt")
    assert "`head.weight` is [3, 88] in the file, [10, 88] in the network" in str(error)
    assert "--num-classes" in error.hint


@pytest.mark.parametrize(
    ("prefix", "whose"),
    [("module.", "DataParallel"), ("model.", "Lightning"), ("_orig_mod.", "torch.compile")],
)
def test_a_prefix_of_a_wrapper_is_recognised(prefix: str, whose: str, tmp_path: Path) -> None:
    state = {f"{prefix}{key}": value for key, value in tiny_state().items()}
    assert whose in refuse(state, tmp_path / "w.pt").hint


def test_nothing_is_changed_by_a_file_that_does_not_fit(tmp_path: Path) -> None:
    state = tiny_state()
    state["head.bias"] = torch.zeros(11)
    path = tmp_path / "w.pt"
    torch.save(state, path)
    network = create("attendnext_tiny")
    with pytest.raises(WeightsError):
        load_weights(network, path, "attendnext_tiny")
    fresh = create("attendnext_tiny").state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in network.state_dict().items())


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_pickled_code_is_not_run(plain_pickle: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "it-ran"
    if plain_pickle:
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save({"head.weight": Trap(mark)}, path)
    with pytest.raises(WeightsError, match="nothing was run"):
        load_weights(create("attendnext_tiny"), path, "attendnext_tiny")
    assert not mark.exists()


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"a": 1}, {1: torch.zeros(2)}])
def test_what_is_no_state_dict(content: Any, tmp_path: Path) -> None:
    error = str(refuse(content, tmp_path / "w.pt"))
    assert "not a state dict" in error
    if isinstance(content, dict):
        assert f"its keys are `{next(iter(content))}`" in error


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "text"])
def test_damaged_files(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(tiny_state(), path)
    else:
        save_file(tiny_state(), path)
    whole = path.read_bytes()
    noise = np.random.default_rng(0).bytes(5000)
    path.write_bytes({"empty": b"", "cut": whole[:-999], "noise": noise, "text": b"hello"}[damage])
    with pytest.raises(WeightsError) as caught:
        load_weights(create("attendnext_tiny"), path, "attendnext_tiny")
    assert caught.value.hint
    assert "Errno" not in str(caught.value)
    if damage == "cut":
        assert "damaged or truncated" in str(caught.value)


@pytest.mark.parametrize("count", [0.5, 0.9999, 10, 5000])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_file_is_called_damaged_wherever_it_ends(
    count: float, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save(tiny_state(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(count * len(whole) if count < 1 else count)])
    with pytest.raises(WeightsError, match="is damaged or truncated"):
        load_weights(create("attendnext_tiny"), path, "attendnext_tiny")


def test_a_file_may_be_cut_in_the_middle_of_a_number(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(tiny_state(), path, _use_new_zipfile_serialization=False)
    whole, network = path.read_bytes(), create("attendnext_tiny")
    for count in range(5000, 5060):  # whatever PyTorch writes there, some of it is four bytes long
        path.write_bytes(whole[:count])
        with pytest.raises(WeightsError, match="is damaged or truncated"):
            load_weights(network, path, "attendnext_tiny")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_cannot_be_opened_is_not_called_damaged(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_weights(create("attendnext_tiny"), tmp_path / f"none{suffix}", "attendnext_tiny")
    assert "damaged" not in str(caught.value)


def test_the_digest_is_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(0).bytes((1 << 20) + 17))
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
