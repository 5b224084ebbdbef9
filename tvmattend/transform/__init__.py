# SPDX-License-Identifier: Apache-2.0
"""Relax passes: canonical IRModule -> IRModule of fused kernels, ready to be scheduled."""

from tvmattend.transform.pipeline import lower

__all__ = ["lower"]
