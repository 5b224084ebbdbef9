# SPDX-License-Identifier: Apache-2.0
"""The fusion rules in order of priority: what one takes, a later one does not see."""

from tvmattend.transform.fuse_convolution_pool import FuseConvolutionPool
from tvmattend.transform.fuse_dcac import FuseDCAC
from tvmattend.transform.fuse_global_pool_linear import FuseGlobalPoolLinear
from tvmattend.transform.fuse_pool_pointwise import FusePoolPointwise
from tvmattend.transform.fuse_residual_block import FuseResidualBlock
from tvmattend.transform.rule import FusionRule

DCAC = FuseDCAC.name


def all_rules() -> tuple[FusionRule, ...]:
    """Every rule that there is."""
    return (
        # First: a condenser's parts would match the smaller families.
        FuseDCAC(),
        FuseResidualBlock(),
        FuseGlobalPoolLinear(),
        # Before the next one: a pooling belongs to its producer, whose map is the larger one.
        FuseConvolutionPool(),
        FusePoolPointwise(),
    )


def default_rules() -> tuple[FusionRule, ...]:
    """The rules that `tune` and `build` use unless they are told otherwise."""
    # A pooling is cheaper in the kernel that feeds it than in the convolution that reads it.
    return tuple(rule for rule in all_rules() if not isinstance(rule, FusePoolPointwise))
