# SPDX-License-Identifier: Apache-2.0
"""The canonical form of an imported network, the same whichever file it came from."""

import re
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule

from tvmattend.errors import ModelError, UnsupportedOperatorError
from tvmattend.expressions import op_name, static_shape
from tvmattend.frontend.faults import OTHERWISE, first_line
from tvmattend.frontend.fold_batch_norm import fold_batch_norm
from tvmattend.frontend.known_operators import KNOWN, makes_a_number
from tvmattend.frontend.one_form import FIRST, RULES
from tvmattend.frontend.rewriting import parts, rewrite

# What a network in inference does not hold; its presence after folding is our fault or a model's.
_TRAINING = ("batch_norm", "dropout", "_grad", "cross_entropy", "nll_loss", "ccl.")

_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def canonicalise(module: IRModule, paths: Mapping[str, str]) -> tuple[IRModule, dict[str, str]]:
    """Fold, clean and name.

    Args:
        module: As imported: one function `main`, weights bound.
        paths: Variable of `main` -> path of the PyTorch module; the variable is renamed after it,
            so that dumps and reports speak the network's language.

    Returns:
        One function `main` in one dataflow block, and the paths under the new names.

    Raises:
        ModelError: Control flow, symbolic shapes, other floats than float32, or constants that TVM
            cannot compute.
        UnsupportedOperatorError: Operators of training, or such as cannot be compiled.
    """
    _check_static(module["main"])
    main, paths = rewrite(module["main"], FIRST, _complete(module["main"], paths))
    # Tuples of a single use and constants first: the rules look for plain variables.
    module, paths = _merge_output(IRModule({"main": main}), paths)
    module = _simplified(
        module, relax.transform.DeadCodeElimination(["main"]), relax.transform.FoldConstant()
    )
    main, paths = rewrite(module["main"], (fold_batch_norm, *RULES), paths)
    module = _simplified(
        IRModule({"main": main}),
        relax.transform.DeadCodeElimination(["main"]),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.FoldConstant(),
        relax.transform.DeadCodeElimination(["main"]),
    )
    _check_inference(module["main"])
    # Names come last: until here a folded convolution and its remains would fight for one.
    main, paths = rewrite(module["main"], (), paths, rename=True)
    module, paths = _merge_output(IRModule({"main": main}), paths)
    return module, {name: path for name, path in paths.items() if path}


def _simplified(module: IRModule, *passes: Any) -> IRModule:
    try:
        return tvm.transform.Sequential(list(passes))(module)
    except Exception as error:  # folding makes kernels, in which anything can be wrong
        # Of an assertion, what it says of itself, if anything.
        said = re.sub(r"^Check failed: .* is false:", "", first_line(error)).strip()
        said = said or "a constant of it cannot be computed"
        traceback = "run again with --debug for the traceback"
        divides = re.search("divi[ds]", said, re.IGNORECASE)
        raise ModelError(
            f"TVM cannot simplify the network: {said}",
            f"look for a division by zero, or {traceback}" if divides else traceback,
        ) from error


def operators(function: Any) -> list[str]:
    """List the operators of a function in order, e.g. `relax.nn.conv2d`."""
    return [
        name
        for block in function.body.blocks
        for binding in block.bindings
        if (name := op_name(binding.value))
    ]


def _merge_output(module: IRModule, paths: dict[str, str]) -> tuple[IRModule, dict[str, str]]:
    """Let the output variable stand for the last computation, not for another name of it."""
    last = module["main"].body.blocks[0].bindings[-1]
    if isinstance(last.value, relax.Var) and last.value.name in paths:
        paths = {**paths, last.var.name: paths[last.value.name]}
        del paths[last.value.name]
    return relax.transform.CanonicalizeBindings()(module), paths


def _complete(function: Any, paths: Mapping[str, str]) -> dict[str, str]:
    """Give what a converter emitted on its way, a convolution ahead of its bias, the same path."""
    complete = dict(paths)
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Var) and binding.value.name in paths:
                complete[binding.var.name] = paths[binding.value.name]
        for binding in reversed(block.bindings):
            for argument in parts(binding.value):
                if isinstance(argument, relax.Var) and binding.var.name in complete:
                    complete.setdefault(argument.name, complete[binding.var.name])
    return complete


def _check_static(function: Any) -> None:
    for parameter in function.params:
        if static_shape(parameter) is None:
            raise ModelError(
                f"input `{parameter.name}` has a symbolic shape",
                "export the network with a fixed shape, or give --batch and --input-size",
            )


def _check_inference(function: Any) -> None:
    for block in function.body.blocks:
        for binding in block.bindings:
            kind = str(getattr(binding.var.ty, "dtype", "") or "")
            if kind in _OTHER_FLOATS:
                raise ModelError(
                    f"the network computes in {kind}, not float32",
                    "call .float() on the network before it is exported",
                )
    for name in operators(function):
        if any(part in name for part in _TRAINING):
            raise UnsupportedOperatorError(
                f"operator `{name}` belongs to training and could not be folded away",
                "call .eval() on the network before it is exported",
            )
        if name not in KNOWN:
            raise UnsupportedOperatorError(f"operator `{name}` cannot be compiled", OTHERWISE)
    for block in function.body.blocks:
        for binding in block.bindings:
            if makes_a_number(binding.value):
                raise UnsupportedOperatorError(
                    f"operator `{op_name(binding.value)}` reduces a whole tensor to one number",
                    "keep the batch: reduce all axes but the first",
                )
