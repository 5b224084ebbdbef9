# SPDX-License-Identifier: Apache-2.0
"""A learned scale is an argument of its kernel, not part of it."""

import numpy as np
import tvm
from relax_blocks import CLASSICAL, HOST, module
from tvm import relax

from tvmattend.transform import lower
from tvmattend.transform.fuse_dcac import FuseDCAC
from tvmattend.transform.widen_scalars import widen_scalars
from tvmattend.tuning.tasks import extract_tasks


def scaled(scale, by):
    """The function of a rule that multiplies by a scale."""

    def body(e, x):
        return e.emit(relax.op.multiply(x, relax.const(np.full(by, scale, "float32"))))

    mod = module(body, (1, 8, 4, 4))
    attrs = tvm.ir.make_node("ir.DictAttrs", Composite="tvmattend.dcac", Primitive=True)
    func = mod["main"]
    grouped = relax.Function(func.params, func.body, func.ret_ty, True, attrs)
    return tvm.IRModule({"main": func, "inner": grouped})


def test_only_scalars_of_grouped_functions_are_widened():
    after = widen_scalars(scaled(0.7, ()))
    wide = scaled(0.7, (1, 1, 1, 1))
    tvm.ir.assert_structural_equal(after["inner"], wide["inner"])
    tvm.ir.assert_structural_equal(after["main"], scaled(0.7, ())["main"])
    tvm.ir.assert_structural_equal(widen_scalars(wide), wide)


def test_kernels_of_networks_that_differ_in_a_scale_have_one_key():
    def keys(scale):
        mod = CLASSICAL.with_(scale=scale).module()
        return [task.key for task in extract_tasks(lower(mod, HOST, rules=[FuseDCAC()]), HOST)]

    assert keys(0.7) == keys(0.3)
    assert keys(0.7) != keys(None)
