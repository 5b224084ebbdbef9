# SPDX-License-Identifier: Apache-2.0
"""Inputs that are drawn, and what the original network gives for them."""

import numpy as np

from tvmattend.errors import ModelError
from tvmattend.frontend.faults import first_line, user_line
from tvmattend.frontend.imported import Arrays, ImportedModel
from tvmattend.frontend.onnx_reference import failed_operator
from tvmattend.frontend.outputs import fits, in_words


def golden_vectors(model: ImportedModel, count: int) -> list[tuple[Arrays, Arrays]]:
    """Draw sets of inputs and run the reference on each.

    Returns:
        `count` pairs of inputs and outputs: one array an input of `model.inputs`, one an output of
        `model.outputs`.

    Raises:
        ModelError: The network does not take such inputs, ONNX's reference does not take the
            network, or its outputs are of another shape or type, or not finite.
    """
    return [(inputs, _outputs(model, inputs)) for inputs in model.sample_inputs(count)]


def _outputs(model: ImportedModel, inputs: Arrays) -> Arrays:
    try:
        outputs = model.reference(inputs)
    except Exception as error:  # the network fails as it likes
        if operator := failed_operator(error):
            raise ModelError(
                f"ONNX's own reference fails in `{operator}` of `{model.name}` "
                f"({model.reference_name}): {type(error).__name__}: {first_line(error)}",
                f"nothing could be compared with it: express `{operator}` with other operators",
            ) from error
        raise ModelError(
            f"`{model.name}` fails on drawn inputs ({model.reference_name}): "
            f"{type(error).__name__}: {first_line(error)}{user_line(error)}",
            "run it on such inputs: numbers of the order 1, negative too, and integers 0 and 1",
        ) from error
    for spec, output in zip(model.outputs, outputs, strict=True):
        if not fits(output.shape, output.dtype.name, (spec.shape, spec.dtype)):
            theirs, ours = (output.shape, output.dtype.name), (spec.shape, spec.dtype)
            raise ModelError(
                f"the reference of `{model.name}` ({model.reference_name}) makes output "
                f"`{spec.name}` {in_words(theirs)}, not {in_words(ours)}",
                "nothing could be compared with it: express what decides on its shape or type with "
                "other operators",
            )
        if not np.isfinite(output).all():
            raise ModelError(
                f"output `{spec.name}` of `{model.name}` is not finite for drawn inputs",
                "nothing could be compared with it: keep logarithms, roots and divisions inside "
                "their domain, with a clamp",
            )
    return outputs
