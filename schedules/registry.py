# SPDX-License-Identifier: Apache-2.0
"""PrimFunc and target -> the design space of its family."""

from typing import Any

from schedules import (
    blocks,
    conv2d_channels,
    conv2d_pixels,
    dense,
    elementwise,
    reduction,
    softmax,
)
from schedules.machines import machine_of
from schedules.space import DesignSpace


def space_for(mod: Any, target: Any) -> DesignSpace:
    """The design space of a kernel.

    Args:
        mod: An IRModule whose only function is the PrimFunc `main`.
        target: A `tvm.target.Target` of kind `llvm`.

    Returns:
        The space of the first family that recognises the kernel's blocks; family `plain` (one
        point, no transformation) for a kernel that none recognises.
    """
    from tvm import s_tir

    sch = s_tir.Schedule(mod)
    machine = machine_of(target)
    reductions = reduction.reduction_blocks(sch)
    if len(sch.get_output_blocks(blocks.root(sch))) != 1:
        return elementwise.plain_space()
    if reductions == [conv2d_pixels.NAME]:
        return conv2d_pixels.space(sch, machine)
    if reductions == [conv2d_channels.NAME]:
        return conv2d_channels.space(sch, machine)
    if reductions == [dense.NAME]:
        return dense.space(sch, machine)
    if softmax.applies(sch):
        return softmax.space(sch, machine)
    if len(reductions) == 1:
        return reduction.space(sch, machine)
    if not reductions:
        return elementwise.space(sch, machine)
    return elementwise.plain_space()
