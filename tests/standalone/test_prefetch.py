# SPDX-License-Identifier: Apache-2.0
"""Prefetches of the next block's weights: where they are, what they cover, where there are none."""

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.machines import CORTEX_A72, X86_64_V3, X86_64_V4, Machine
from tvmattend.standalone.kernels import Signature, generate, split_kernels
from tvmattend.standalone.prefetch import prefetch_weights
from tvmattend.standalone.statements import map_children
from tvmattend.target import parse_target

LANES = 16
LINE = 16  # floats
TAPS = 9
W = 1  # a parameter


def _sums(blocks: int, pixels: int, channels: int, *, scalars: bool = False) -> Any:
    """y[p, o] = sum over c of x[p, c] * w[o, c], in vectors of features or with scalar weights."""
    from tvm.script import tirx as T  # noqa: N812

    block = channels * LANES
    if scalars:

        @T.prim_func(s_tir=True)
        def func(
            x: T.Buffer((channels * pixels * LANES,), "float32"),
            w: T.Buffer((blocks * channels,), "float32"),
            y: T.Buffer((blocks * pixels * LANES,), "float32"),
        ) -> None:
            for o in T.serial(blocks):
                for p in T.serial(pixels):
                    for c in T.serial(channels):
                        y[T.Ramp((o * pixels + p) * LANES, 1, LANES)] = y[
                            T.Ramp((o * pixels + p) * LANES, 1, LANES)
                        ] + x[T.Ramp((c * pixels + p) * LANES, 1, LANES)] * T.Broadcast(
                            w[o * channels + c], LANES
                        )

        return func

    @T.prim_func(s_tir=True)
    def func(
        x: T.Buffer((pixels * channels,), "float32"),
        w: T.Buffer((blocks * block,), "float32"),
        y: T.Buffer((pixels * blocks * LANES,), "float32"),
    ) -> None:
        for o in T.serial(blocks):
            for p in T.serial(pixels):
                for c in T.serial(channels):
                    y[T.Ramp((p * blocks + o) * LANES, 1, LANES)] = (
                        y[T.Ramp((p * blocks + o) * LANES, 1, LANES)]
                        + T.Broadcast(x[p * channels + c], LANES)
                        * w[T.Ramp(o * block + c * LANES, 1, LANES)]
                    )

    return func


def _asked(func: Any, outer: int = 1) -> dict[tuple[int, ...], list[int]]:
    """Elements of the weights that are asked for in each round of the outermost loops."""
    from tvm import tirx

    found: dict[tuple[int, ...], list[int]] = {}

    def visit(node: Any, loops: tuple[Any, ...]) -> None:
        if isinstance(node, tirx.Evaluate):
            (index,) = node.value.args[0].args[0].indices
            for values in product(*(range(int(loop.extent)) for loop in loops)):
                names = {loop.loop_var.name: v for loop, v in zip(loops, values, strict=True)}
                found.setdefault(values[:outer], []).append(_value(index, names))
        for child in (*getattr(node, "seq", ()), getattr(node, "body", None)):
            if child is not None:
                visit(child, (*loops, node) if isinstance(node, tirx.For) else loops)

    visit(func.body, ())
    return found


def _value(index: Any, names: dict[str, int]) -> int:
    from tvm import tirx

    if isinstance(index, tirx.IntImm):
        return int(index.value)
    if isinstance(index, tirx.Var):
        return names[index.name]
    a, b = _value(index.a, names), _value(index.b, names)
    if isinstance(index, tirx.FloorMod):
        return a % b
    return a + b if isinstance(index, tirx.Add) else a * b


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.integers(2, 4),
    pixels=st.integers(2, 9),
    channels=st.integers(2, 40),
    scalars=st.booleans(),
)
def test_all_lines_of_the_next_block_are_asked_for(
    blocks: int, pixels: int, channels: int, scalars: bool
) -> None:
    func = prefetch_weights(_sums(blocks, pixels, channels, scalars=scalars), [W], X86_64_V4)
    block = channels if scalars else channels * LANES
    rounds = pixels * channels
    share = -(-block // rounds)
    for (o,), asked in _asked(func).items():
        assert {at // LINE for at in asked} >= {
            at // LINE for at in range((o + 1) * block, (o + 2) * block)
        }
        assert len(asked) == rounds * -(-share // LINE), "no more than that takes"
        assert max(asked) < (o + 2) * block + rounds, "and hardly any beyond"
    assert len(_asked(func)) == blocks


def _prefetches(func: Any) -> int:
    return str(func.script()).count("prefetch")


def test_only_weights_are_asked_for() -> None:
    func = _sums(3, 4, 8)
    assert _prefetches(prefetch_weights(func, [], X86_64_V4)) == 0
    assert _prefetches(prefetch_weights(func, [W], X86_64_V4)) == 1


def _transformed(jobs: int, columns: int, blocks: int, pixels: int, channels: int) -> Any:
    """u[c] = 2 w[job % columns, o, c, 0], of which y[p, o] = sum over c of x[p, c] * u[c]."""
    from tvm.script import tirx as T  # noqa: N812

    block = channels * TAPS * LANES

    @T.prim_func(s_tir=True)
    def func(
        x: T.Buffer((pixels * channels,), "float32"),
        w: T.Buffer((columns * blocks * block,), "float32"),
        y: T.Buffer((pixels * blocks * LANES,), "float32"),
        u: T.Buffer((channels * LANES,), "float32"),
    ) -> None:
        for job in T.serial(jobs):
            for o in T.serial(blocks):
                for z in T.serial(pixels * channels + 1):  # nothing is read in these rounds
                    u[T.Ramp(z % channels * LANES, 1, LANES)] = T.Broadcast(T.float32(0), LANES)
                for s in T.serial(pixels * channels + 1):  # LLVM makes vectors of these
                    x[s % channels] = x[s % channels] * 2.0
                for c in T.serial(channels):
                    u[T.Ramp(c * LANES, 1, LANES)] = (
                        w[
                            T.Ramp(
                                job % columns * (blocks * block) + o * block + c * (TAPS * LANES),
                                1,
                                LANES,
                            )
                        ]
                        * 2.0
                    )
                for p in T.serial(pixels):
                    for k in T.serial(channels):
                        y[T.Ramp((p * blocks + o) * LANES, 1, LANES)] = (
                            y[T.Ramp((p * blocks + o) * LANES, 1, LANES)]
                            + T.Broadcast(x[p * channels + k], LANES)
                            * u[T.Ramp(k * LANES, 1, LANES)]
                        )

    return func


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    columns=st.integers(1, 3),
    blocks=st.integers(2, 4),
    pixels=st.integers(2, 40),
    channels=st.integers(2, 12),
)
def test_weights_that_are_transformed_are_asked_for_among_the_products(
    batch: int, columns: int, blocks: int, pixels: int, channels: int
) -> None:
    """Of each column, whichever image's; the last block's next one is that of the next column."""
    func = _transformed(batch * columns, columns, blocks, pixels, channels)
    asked = _asked(prefetch_weights(func, [W], X86_64_V4), outer=2)
    block = channels * TAPS * LANES
    share = -(-block // (pixels * channels))
    assert set(asked) == {(job, o) for job in range(batch * columns) for o in range(blocks)}
    for (job, o), places in asked.items():
        first = (job % columns * blocks + o + 1) * block
        assert {at // LINE for at in places} >= {at // LINE for at in range(first, first + block)}
        assert len(places) == pixels * channels * -(-share // LINE), "in the rounds of the products"


def _linear(blocks: int, channels: int) -> Any:
    """y[o] = sum over c of x[c] * w[o, c]."""
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(
        x: T.Buffer((channels,), "float32"),
        w: T.Buffer((blocks * channels * LANES,), "float32"),
        y: T.Buffer((blocks * LANES,), "float32"),
    ) -> None:
        for o in T.serial(blocks):
            for c in T.serial(channels):
                y[T.Ramp(o * LANES, 1, LANES)] = (
                    y[T.Ramp(o * LANES, 1, LANES)]
                    + T.Broadcast(x[c], LANES)
                    * w[T.Ramp(o * (channels * LANES) + c * LANES, 1, LANES)]
                )

    return func


def test_weights_that_are_read_once_with_nothing_else_to_do_are_not_asked_for() -> None:
    assert _prefetches(prefetch_weights(_linear(3, 8), [W], X86_64_V4)) == 0


def test_one_of_several_copies_of_an_unrolled_loop_asks() -> None:
    """Copies share the variable of the loop in them."""
    import tvm
    from tvm import tirx

    func = _sums(3, 4, 8)
    over = func.body.body
    again = tirx.For(over.loop_var, 0, 4, tirx.ForKind.UNROLLED, over.body)
    func = func.with_body(map_children(func.body, lambda _: again))
    func = tirx.transform.UnrollLoop()(tvm.IRModule({"f": func}))["f"]
    found = prefetch_weights(func, [W], X86_64_V4)
    assert _prefetches(found) == 1
    assert {place for places in _asked(found).values() for place in places} == {
        place
        for places in _asked(prefetch_weights(_sums(3, 1, 8), [W], X86_64_V4)).values()
        for place in places
    }


@pytest.mark.parametrize(
    ("machine", "channels", "hints"),
    [(CORTEX_A72, 8, 0), (X86_64_V3, 8, 1), (X86_64_V3, 4096, 1), (X86_64_V3, 4097, 0)],
)
def test_a_block_must_fit_half_of_a_cache_of_the_cores_own(
    machine: Machine, channels: int, hints: int
) -> None:
    """4,096 channels in 16 lanes are 256 KB."""
    assert _prefetches(prefetch_weights(_sums(2, 4, channels), [W], machine)) == hints


def _assembly(target: str, weights: frozenset[int]) -> str:
    import tvm
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(
        x: T.Buffer((7, 64), "float32"),
        w: T.Buffer((4, 64, LANES), "float32"),
        y: T.Buffer((7, 4, LANES), "float32"),
    ) -> None:
        for o in T.parallel(4):
            for p in T.serial(7):
                for c in T.serial(64):
                    for lane in T.vectorized(LANES):
                        with T.sblock("sum"):
                            vp, vo, vl = T.axis.remap("SSS", [p, o, lane])
                            vc = T.axis.reduce(64, c)
                            with T.init():
                                y[vp, vo, vl] = T.float32(0)
                            y[vp, vo, vl] = y[vp, vo, vl] + x[vp, vc] * w[vo, vc, vl]

    triple = "aarch64-linux-gnu" if target == "cortex-a72" else "x86_64-linux-gnu"
    spec = parse_target(f"llvm -mtriple={triple} -mcpu={target}")
    mod = tvm.IRModule({"k": func.with_attr("global_symbol", "k")})
    kernel = split_kernels(mod, {"k": Signature(1, weights)}, "net", spec)["k"]
    return str(generate([kernel], spec).inspect_source("asm"))


@pytest.mark.parametrize(("target", "more"), [("x86-64-v3", True), ("cortex-a72", False)])
def test_the_instruction_is_in_the_object(target: str, more: bool) -> None:
    without, with_weights = _assembly(target, frozenset()), _assembly(target, frozenset([W]))
    assert (with_weights.count("prefetcht1") > without.count("prefetcht1")) == more
    assert "prfm" not in with_weights


@pytest.mark.parametrize(
    ("target", "aligned"), [("x86-64-v4", "$-64"), ("x86-64-v3", "$-32"), ("cortex-a72", None)]
)
def test_the_stack_is_aligned_to_vectors(target: str, aligned: str | None) -> None:
    """A C caller aligns it to 16 bytes; NEON's vectors need no more."""
    found = re.findall(r"\band\w*\s+(\S+), %rsp", _assembly(target, frozenset()))
    assert found == ([] if aligned is None else [aligned])
