# SPDX-License-Identifier: Apache-2.0
"""`package.module:factory` -> an nn.Module."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from tvmattend.errors import ModelError
from tvmattend.frontend.faults import first_line, user_line
from tvmattend.frontend.request import ModelRequest, importable_from_here


def make_module(request: ModelRequest) -> nn.Module:
    """Import and call the factory, with PyTorch's generator seeded.

    The factory takes `num_classes` if `--num-classes` is given, and nothing else.

    Raises:
        ModelError: It cannot be imported or called, or gives no nn.Module.
    """
    module_name, attribute = request.factory_parts()
    with importable_from_here(), torch.random.fork_rng(devices=[]):
        factory = _find(module_name, attribute)
        options = _options(factory, request)
        torch.manual_seed(request.seed)
        try:
            network = factory(**options)
        except (Exception, SystemExit) as error:  # somebody else's code fails as it likes
            raise ModelError(
                f"`{request.model}` failed: {type(error).__name__}: "
                f"{first_line(error)}{_place(error)}",
                "call it in Python first; it must need no arguments",
            ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"`{request.model}` gave a {type(network).__name__}, not an nn.Module",
            "a factory returns the network itself",
        )
    return network


def input_size(network: nn.Module, request: ModelRequest) -> tuple[int, ...]:
    """Give the shape of one image, (C, H, W): `--input-size`, the module's `input_shape`, or 224.

    `input_shape` is (C, H, W) or (N, C, H, W); its batch gives way to `--batch`.

    Raises:
        ModelError: An `input_shape` of another form.
    """
    shape = getattr(network, "input_shape", (3, 224, 224))
    try:
        extents = tuple(int(extent) for extent in shape)
    except (TypeError, ValueError):
        extents = ()
    extents = extents[1:] if len(extents) == 4 else extents
    if len(extents) != 3 or min(extents) < 1:
        raise ModelError(
            f"`{request.model}` has the input_shape {shape!r}",
            "give it as (channels, height, width)",
        )
    if request.input_size is not None:
        return (extents[0], request.input_size, request.input_size)
    return extents


def _find(module_name: str, attribute: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs somebody else's code
        raise ModelError(
            f"cannot import `{module_name}`: {type(error).__name__}: "
            f"{first_line(error)}{_place(error)}",
            "run from the directory that holds it, or install it",
        ) from error
    # One of that name may be imported already: Python's own, say.
    file = getattr(found, "__file__", None) or "no file"
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelError(f"`{module_name}` ({file}) has no `{attribute}`", _offer(found, part))
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        network = found
        return lambda: network
    if not callable(found):
        raise ModelError(
            f"`{module_name}:{attribute}` is a {type(found).__name__}, not a callable",
            "name a function or class that makes the network",
        )
    return cast("Callable[..., Any]", found)


def _offer(found: Any, part: str) -> str:
    """Name what a module or class defines itself, the nearest first."""
    home = getattr(found, "__module__", getattr(found, "__name__", ""))
    own = [
        name
        for name, value in vars(found).items()
        if name[0] != "_" and getattr(value, "__module__", None) == home
    ]
    near = difflib.get_close_matches(part, own, n=2)
    return (
        f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(own[:8]) or 'none'}"
    )


def _options(factory: Callable[..., Any], request: ModelRequest) -> dict[str, int]:
    if request.num_classes is None:
        return {}
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if not any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ModelError(
            f"`{request.model}` takes no `num_classes`",
            "leave --num-classes out, or add the parameter",
        )
    return {"num_classes": request.num_classes}


def _place(error: BaseException) -> str:
    """Say where in the user's code an error arose; nothing if the call itself was wrong."""
    if isinstance(error, SyntaxError) and error.filename:
        return f", at {error.filename}:{error.lineno}"
    return user_line(error)
