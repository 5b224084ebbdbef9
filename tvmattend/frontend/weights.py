# SPDX-License-Identifier: Apache-2.0
"""Load a state dict into a module, or say which entry is the first that does not fit."""

import errno
import hashlib
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tvmattend.errors import WeightsError
from tvmattend.frontend.faults import first_line

# Counters of training; older files lack them, and inference does not read them.
_IGNORED = "num_batches_tracked"
# Whose wrapper of a network gives its keys which prefix, the name of the attribute inside.
_WRAPPERS = {"module.": "DataParallel", "model.": "Lightning", "_orig_mod.": "torch.compile"}
_MOST_KEYS = 8  # in a message
_ALONE = "save the weights alone: torch.save(network.state_dict(), path)"
# What readers raise where a file ends too early; PyTorch's `struct.error` is of a cut number.
_DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, SafetensorError, struct.error,
)  # fmt: skip


def load_weights(module: nn.Module, path: Path, network: str) -> None:
    """Fill a module from `.safetensors` or from a state dict, without running pickled code.

    Raises:
        WeightsError: The file cannot be read, or belongs to another network.
    """
    given = {key: value for key, value in _read(path).items() if not key.endswith(_IGNORED)}
    wanted = {
        key: value for key, value in module.state_dict().items() if not key.endswith(_IGNORED)
    }
    there = {_place(tensor) for key, tensor in wanted.items() if key in given}
    for key, tensor in wanted.items():
        if key not in given and _place(tensor) in there:
            continue  # tied to one that the file has; safetensors keeps one name of the two
        if key not in given:
            raise WeightsError(
                f"`{path}` does not fit {network}: it lacks `{key}` {list(tensor.shape)}",
                _hint(given, wanted),
            )
        if given[key].shape != tensor.shape:
            raise WeightsError(
                f"`{path}` does not fit {network}: `{key}` is {list(given[key].shape)} in the "
                f"file, {list(tensor.shape)} in the network",
                "the head's size is --num-classes" if key.startswith("head.") else "check --model",
            )
    for key, tensor in given.items():
        if key not in wanted:
            raise WeightsError(
                f"`{path}` does not fit {network}: the network has no `{key}` {list(tensor.shape)}",
                _hint(given, wanted),
            )
    with torch.no_grad():
        module.load_state_dict(given, strict=False)


def sha256(*paths: Path) -> str:
    """Digest files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                digest.update(piece)
    return digest.hexdigest()


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Tell a tensor from all that show other numbers, but not from those that are tied to it."""
    storage = tensor.untyped_storage().data_ptr() or id(tensor)  # empty ones all lie at 0
    return storage, tensor.storage_offset(), *tensor.shape, *tensor.stride()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            # Of a pickle that PyTorch did not write, or of TorchScript, which it then refuses.
            warnings.filterwarnings("ignore", "Detected pickle|.*TorchScript", UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"`{path}` holds pickled Python objects, or is no PyTorch file; nothing was run",
            _ALONE,
        ) from error
    except _DAMAGE as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"`{path}` is a TorchScript program, not a state dict",
                "save its weights alone: torch.save(torch.jit.load(path).state_dict(), other_path)",
            ) from error
        # PyTorch seeks back from the end of a file that is too short: "Invalid argument".
        short = isinstance(error, OSError) and error.errno == errno.EINVAL
        if isinstance(error, OSError) and not short:
            raise WeightsError(
                f"cannot read `{path}`: {error.strerror or first_line(error)}",
                "check the path and its permissions",
            ) from error
        # PyTorch goes on about its own insides after the first sentence; a key or an index that
        # its reader missed says nothing.
        silent = short or isinstance(error, LookupError)
        reason = "" if silent else f": {first_line(error).split('. ')[0]}"
        raise WeightsError(
            f"`{path}` is damaged or truncated{reason}", "copy it, or save the weights, again"
        ) from error
    return _state(content, path)


def _state(content: object, path: Path) -> dict[str, Tensor]:
    """Give the state dict, which checkpoints of training keep beside the optimizer's."""
    if _is_state(content):
        return dict(content)
    entries = content if isinstance(content, Mapping) else {}
    held = [key for key, value in entries.items() if _is_state(value) and value]
    if "state_dict" in held:
        held = ["state_dict"]
    if len(held) == 1:
        return dict(entries[held[0]])
    if held:
        named = ", ".join(f"`{key}`" for key in held)
        raise WeightsError(f"`{path}` holds several state dicts: {named}", "save one of them alone")
    keys = ", ".join(f"`{key}`" for key in list(entries)[:_MOST_KEYS])
    raise WeightsError(
        f"`{path}` is not a state dict of tensors"
        + (f": its keys are {keys}{', ...' * (len(entries) > _MOST_KEYS)}" if keys else ""),
        _ALONE,
    )


def _is_state(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def _hint(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    for prefix, whose in _WRAPPERS.items():
        if given and all(key.startswith(prefix) for key in given):
            return (
                f"the keys start with `{prefix}`, as {whose}'s do: save the state dict of the "
                f"network inside, its `.{prefix[:-1]}`"
            )
    common = len(given.keys() & wanted.keys())
    return f"{common} of the network's {len(wanted)} entries are in the file; check --model"
