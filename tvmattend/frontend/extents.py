# SPDX-License-Identifier: Apache-2.0
"""The static shape of an input: what its file fixes, and what the options say of the rest."""

from tvmattend.errors import ModelError
from tvmattend.frontend.request import ModelRequest


def static_extent(request: ModelRequest, name: str, axis: int, rank: int, own: int | str) -> int:
    """Give one extent of an input.

    A first extent that is open becomes the batch, open heights and widths the input size.

    Args:
        request: What was asked.
        name: Of the input.
        axis: Of the extent.
        rank: Of the input.
        own: The extent that the file fixes, or its symbol.

    Raises:
        ModelError: A fixed extent that differs from what was asked, or that is 0, or one that
            nothing fixes.
    """
    if own == 0:
        raise ModelError(
            f"`{request.model}`: extent {axis} of input `{name}` is 0",
            "export it with inputs that hold numbers",
        )
    image = rank == 4 and axis > 1
    option = "--batch" if axis == 0 else "--input-size"
    asked = request.batch if axis == 0 else request.input_size if image else None
    if isinstance(own, str):
        found = request.images if axis == 0 else asked
        if found is None:
            raise ModelError(
                f"`{request.model}`: extent {axis} of input `{name}` is not fixed ({own})",
                "give --input-size" if image else "export it with a fixed shape",
            )
        return found
    if asked is not None and asked != own:
        raise ModelError(
            f"`{request.model}` is fixed to {own} at extent {axis} of `{name}`, not {asked}",
            f"leave {option} out, or export it with a symbolic extent",
        )
    return own
