# SPDX-License-Identifier: Apache-2.0
"""The smaller families: convolution + pool, pool + pointwise, global pool + linear."""

import pytest
import tvm
from relax_blocks import HOST, Emitter, module, relative, run, sample
from tvm import relax

from tvmattend.transform import lower
from tvmattend.transform.dataflow import Dataflow
from tvmattend.transform.fuse_convolution_pool import FuseConvolutionPool
from tvmattend.transform.fuse_global_pool_linear import FuseGlobalPoolLinear
from tvmattend.transform.fuse_pool_pointwise import FusePoolPointwise
from tvmattend.transform.grouping import group
from tvmattend.transform.ledger import keep_account, lower_by_default
from tvmattend.transform.rule import judge


def stem(
    layout="NCHW", incoming=3, act=True, between=False, dilation=1, twice=False, pool_layout=None
):
    def body(e, x):
        y = e.conv(x, 8, 3, name="expand", strides=2)
        y = e.act(y) if act else y
        y = e.conv(y, 8, 3, 4, name="embed", dilation=dilation, padding=dilation)
        y = e.emit(relax.op.exp(y)) if between else e.act(y)
        y = e.act(y) if twice else y
        pool = relax.op.nn.avg_pool2d(y, [3, 3], [2, 2], [1, 1], layout=pool_layout or layout)
        return e.emit(pool, "pool")

    shape = (1, incoming, 17, 15) if layout == "NCHW" else (1, 17, 15, incoming)
    return module(body, shape, Emitter(layout))


def pooled(layout="NCHW", kernel=1, act=True, strides=1, pool_layout=None):
    def body(e, x):
        y = e.emit(relax.op.nn.max_pool2d(x, [2, 2], [2, 2], layout=pool_layout or layout), "pool")
        y = e.conv(y, 12, kernel, name="project", strides=strides)
        return e.act(y, "out") if act else y

    shape = (1, 8, 9, 7) if layout == "NCHW" else (1, 9, 7, 8)
    return module(body, shape, Emitter(layout))


def head(axes=(2, 3), keepdims=False, flatten=None, bias=True, constant=True):
    def body(e, x):
        y = e.emit(relax.op.mean(x, list(axes), keepdims=keepdims), "mean")
        if flatten is not None:
            y = e.emit(flatten(y))
        depth = int(y.ty.shape[1])
        weight = e.weight(depth, 10)
        if not constant:
            weight = e.emit(relax.op.zeros((depth, 10), "float32"))
        y = e.emit(relax.op.matmul(y, weight), "linear")
        return e.emit(relax.op.add(y, e.weight(10)), "out") if bias else y

    return module(body, (1, 24, 7, 7))


def reshape(y):
    return relax.op.reshape(y, (1, 24))


def lone(y):
    return relax.op.reshape(y, (1, 1))


def squeeze(y):
    return relax.op.squeeze(y, [2, 3])


CASES = {
    "stem": (FuseConvolutionPool(), stem),
    "pointwise": (FusePoolPointwise(), pooled),
    "head": (FuseGlobalPoolLinear(), head),
}


def verdict(rule, mod):
    (judgement,) = judge(rule, Dataflow(mod["main"]))
    return judgement.verdict


@pytest.mark.parametrize(
    ("rule", "mod", "variant"),
    [
        (FuseConvolutionPool(), stem(), "stem"),
        (FuseConvolutionPool(), stem("NHWC"), "stem"),
        (FuseConvolutionPool(stem=False), stem(), "single"),
        # Reads twelve channels, or has no activation between: the last convolution alone.
        (FuseConvolutionPool(), stem(incoming=12), "single"),
        (FuseConvolutionPool(), stem(act=False), "single"),
        (FusePoolPointwise(), pooled(), "pooled"),
        (FusePoolPointwise(), pooled("NHWC", act=False), "pooled"),
        (FuseGlobalPoolLinear(), head(), "direct"),
        (FuseGlobalPoolLinear(), head(bias=False), "direct"),
        (FuseGlobalPoolLinear(), head(keepdims=True, flatten=reshape), "reshape"),
        (FuseGlobalPoolLinear(), head(keepdims=True, flatten=squeeze), "squeeze"),
    ],
)
def test_matches(rule, mod, variant):
    found = verdict(rule, mod)
    assert (found.fused, found.variant) == (True, variant), found.reason


@pytest.mark.parametrize(
    ("rule", "mod", "reason"),
    [
        (FuseConvolutionPool(), stem(dilation=2), "a dilated convolution"),
        (FuseConvolutionPool(), stem(incoming=12, dilation=2), "the first convolution is no stem"),
        (FuseConvolutionPool(), stem(twice=True), "more between convolution and pooling than"),
        (
            FuseConvolutionPool(),
            stem(pool_layout="NHWC"),
            "the layout changes between convolution and pooling",
        ),
        (
            FusePoolPointwise(),
            pooled(pool_layout="NHWC"),
            "the layout changes between pooling and convolution",
        ),
        (FusePoolPointwise(), pooled(strides=2), "a strided convolution"),
        (FuseGlobalPoolLinear(), head(constant=False), "the weights are no constants"),
        (FuseGlobalPoolLinear(), head((1, 2, 3), True, lone), "over axes [1, 2, 3] of 4"),
    ],
)
def test_says_why_not(rule, mod, reason):
    found = verdict(rule, mod)
    assert not found.fused
    assert reason in found.reason


def test_an_unknown_operator_between_is_no_candidate():
    assert judge(FuseConvolutionPool(), Dataflow(stem(between=True)["main"])) == []
    assert judge(FusePoolPointwise(), Dataflow(pooled(kernel=3)["main"])) == []


def test_a_second_user_is_a_reason():
    def body(e, x):
        hidden = e.act(e.conv(x, 8, 3), "hidden")
        return relax.Tuple([e.pool(hidden, "avg"), e.emit(relax.op.exp(hidden), "other")])

    found = verdict(FuseConvolutionPool(), module(body, (1, 8, 8, 8)))
    assert found.reason == "`hidden` has a second user, `other`"


@pytest.mark.parametrize(("rule", "make"), CASES.values(), ids=CASES)
def test_the_match_becomes_one_function(rule, make):
    before = make()
    after = group(before, [rule])
    (inner,) = [f for _, f in after.functions_items() if f.attrs and "Composite" in f.attrs]
    assert str(inner.attrs["Composite"]) == rule.name
    plain = inner.without_attr("Composite").without_attr("Primitive")
    wanted = before["main"].without_attr("global_symbol")
    tvm.ir.assert_structural_equal(plain, wanted, map_free_vars=True)


@pytest.mark.parametrize(("rule", "make"), CASES.values(), ids=CASES)
def test_one_kernel_with_the_same_numbers(rule, make):
    mod = make()
    x = sample(mod)
    fused = lower(mod, HOST, rules=[rule])
    with HOST.to_tvm():
        assert keep_account(lower_by_default(mod), 1).kernel_launches > 1
    assert keep_account(fused, 1).kernel_launches == 1
    assert relative(run(fused, x), run(lower(mod, HOST, rules=()), x)) < 1e-5
