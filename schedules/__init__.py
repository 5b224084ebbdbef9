# SPDX-License-Identifier: Apache-2.0
"""TensorIR design spaces: one file a kernel family; `space_for` picks the family of a PrimFunc."""

from schedules.registry import space_for
from schedules.space import DesignSpace, Knob, Point

__all__ = ["DesignSpace", "Knob", "Point", "space_for"]
