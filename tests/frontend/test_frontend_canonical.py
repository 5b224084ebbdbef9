# SPDX-License-Identifier: Apache-2.0
"""The canonical form: each rule's before and after, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from relax_runner import run_relax
from tvm import relax

from tvmattend.errors import ModelError, UnsupportedOperatorError
from tvmattend.expressions import constant
from tvmattend.frontend.canonical import canonicalise, operators

op = relax.op
Body = Callable[[relax.BlockBuilder, relax.Var], Any]


def make(body: Body, shape: tuple[int, ...] = (2, 3, 6, 6), dtype: str = "float32") -> Any:
    """Build a module `main(x)` whose dataflow block is what `body` emits and returns."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(body(builder, x))
        builder.emit_func_output(output)
    return builder.get()


def array(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> Any:
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


def const(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> Any:
    return relax.const(array(*shape, seed=seed, low=low, high=high))


def norm(builder: relax.BlockBuilder, x: Any, axis: int = 1, training: bool = False) -> Any:
    channels = int(x.ty.shape[axis])
    vectors = [const(channels, seed=seed, low=0.5, high=2.0) for seed in range(4)]
    result = builder.emit(op.nn.batch_norm(x, *vectors, axis=axis, training=training))
    return builder.emit(relax.TupleGetItem(result, 0))


def check(body: Body, expected: list[str], shape: tuple[int, ...] = (2, 3, 6, 6)) -> Any:
    """Canonicalise, compare the operators, and the numbers with those of the original."""
    before = make(body, shape)
    after, _ = canonicalise(before, {})
    assert operators(after["main"]) == expected
    assert isinstance(after["main"].body.blocks[0], relax.DataflowBlock)
    relax.analysis.well_formed(after)  # raises if it is not
    x = array(*shape, seed=9)
    for ours, theirs in zip(run_relax(after, [x]), run_relax(before, [x]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
    return after["main"]


def conv(x: Any, groups: int = 1, **options: Any) -> Any:
    channels = int(x.ty.shape[1])
    weight = const(2 * channels, channels // groups, 3, 3)
    return op.nn.conv2d(x, weight, padding=1, groups=groups, **options)


CONV, ADD, MUL = "relax.nn.conv2d", "relax.add", "relax.multiply"


class TestBatchNorm:
    @pytest.mark.parametrize("groups", [1, 3])
    def test_folds_into_the_convolution(self, groups: int) -> None:
        check(lambda b, x: norm(b, b.emit(conv(x, groups))), [CONV, ADD])

    def test_folds_through_a_bias(self) -> None:
        def body(b: Any, x: Any) -> Any:
            biased = op.add(b.emit(conv(x)), op.reshape(const(6), (1, 6, 1, 1)))
            return norm(b, b.emit(biased))

        check(body, [CONV, ADD])

    def test_two_in_a_row_fold_into_one(self) -> None:
        check(lambda b, x: norm(b, norm(b, b.emit(conv(x)))), [CONV, ADD])

    def test_alone_becomes_scale_and_shift(self) -> None:
        main = check(norm, [MUL, ADD])
        scale = constant(main.body.blocks[0].bindings[0].value.args[1])
        assert scale is not None
        assert scale.shape == (1, 3, 1, 1)

    @pytest.mark.parametrize(("shape", "axis"), [((4, 5), 1), ((2, 3, 4, 5), 3), ((2, 3, 7), 1)])
    def test_alone_on_other_shapes(self, shape: tuple[int, ...], axis: int) -> None:
        check(lambda b, x: norm(b, x, axis=axis), [MUL, ADD], shape)

    def test_keeps_a_convolution_that_others_read(self) -> None:
        def body(b: Any, x: Any) -> Any:
            shared = b.emit(conv(x))
            return b.emit(op.add(norm(b, shared), shared))

        check(body, [CONV, MUL, ADD, ADD])

    def test_keeps_a_convolution_that_is_an_output(self) -> None:
        def body(b: Any, x: Any) -> Any:
            shared = b.emit(conv(x))
            return relax.Tuple([norm(b, shared), shared])

        check(body, [CONV, MUL, ADD])

    def test_keeps_a_bias_that_is_no_channel_vector(self) -> None:
        def body(b: Any, x: Any) -> Any:
            biased = b.emit(op.add(b.emit(conv(x)), const(1, 1, 6, 6)))
            return norm(b, biased)

        check(body, [CONV, ADD, MUL, ADD])

    def test_does_not_fold_along_another_axis(self) -> None:
        check(lambda b, x: norm(b, b.emit(conv(x)), axis=3), [CONV, MUL, ADD])

    def test_does_not_fold_into_a_weight_that_is_computed(self) -> None:
        def body(b: Any, x: Any) -> Any:
            weight = b.emit(op.mean(x, [2, 3], keepdims=True))  # (2, 3, 1, 1)
            return norm(b, b.emit(op.nn.conv2d(x, weight)))

        check(body, ["relax.mean", CONV, MUL, ADD])

    def test_of_training_is_refused(self) -> None:
        with pytest.raises(ModelError, match="statistics of the batch") as caught:
            canonicalise(make(lambda b, x: norm(b, x, training=True)), {})
        assert ".eval()" in caught.value.hint

    def test_with_computed_statistics_is_refused(self) -> None:
        def body(b: Any, x: Any) -> Any:
            mean = b.emit(op.mean(x, [0, 2, 3]))
            result = b.emit(
                op.nn.batch_norm(x, const(3), const(3), mean, mean, axis=1, training=False)
            )
            return b.emit(relax.TupleGetItem(result, 0))

        with pytest.raises(ModelError, match="BatchNorm are computed by the network") as caught:
            canonicalise(make(body), {})
        assert ".eval()" not in caught.value.hint

    def test_whose_new_statistics_are_read_is_refused(self) -> None:
        def body(b: Any, x: Any) -> Any:
            vectors = [const(3, seed=seed, low=0.5, high=2.0) for seed in range(4)]
            result = b.emit(op.nn.batch_norm(x, *vectors, axis=1, training=False))
            return b.emit(relax.TupleGetItem(result, 1))

        with pytest.raises(UnsupportedOperatorError, match="batch_norm"):
            canonicalise(make(body), {})


class TestOneForm:
    @pytest.mark.parametrize("gate_first", [True, False])
    def test_silu(self, gate_first: bool) -> None:
        def body(b: Any, x: Any) -> Any:
            gate = b.emit(op.sigmoid(x))
            return b.emit(op.multiply(gate, x) if gate_first else op.multiply(x, gate))

        check(body, ["relax.nn.silu"])

    def test_a_gate_on_other_features_is_no_silu(self) -> None:
        def body(b: Any, x: Any) -> Any:
            return b.emit(op.multiply(b.emit(op.sigmoid(x)), b.emit(op.exp(x))))

        check(body, ["relax.sigmoid", "relax.exp", MUL])

    def test_a_sigmoid_with_another_reader_stays(self) -> None:
        def body(b: Any, x: Any) -> Any:
            gate = b.emit(op.sigmoid(x))
            return b.emit(op.add(b.emit(op.multiply(x, gate)), gate))

        check(body, ["relax.sigmoid", "relax.nn.silu", ADD])

    def test_types_of_outputs_are_explicit(self) -> None:
        def body(b: Any, x: Any) -> Any:
            pooled = b.emit(op.mean(b.emit(conv(x)), [2, 3]))
            return b.emit(op.matmul(pooled, const(6, 4)))

        main = check(body, [CONV, "relax.mean", "relax.matmul"])
        calls = [binding.value for binding in main.body.blocks[0].bindings]
        assert [str(calls[i].attrs["out_dtype"]) for i in (0, 2)] == ["float32", "float32"]

    def test_constants_stand_last(self) -> None:
        def body(b: Any, x: Any) -> Any:
            return b.emit(op.add(const(3, 1, 1), b.emit(op.multiply(const(1, 3, 1, 1), x))))

        main = check(body, [MUL, ADD])
        for binding in main.body.blocks[0].bindings:
            assert constant(binding.value.args[1]) is not None

    @pytest.mark.parametrize(
        "pool",
        [
            lambda x: op.mean(x, [-1, -2]),
            lambda x: op.mean(x, [3, 2], keepdims=False),
            lambda x: op.reshape(op.mean(x, [2, 3], keepdims=True), (2, 3)),
            lambda x: op.squeeze(op.mean(x, [-2, -1], keepdims=True), [2, 3]),
            lambda x: op.reshape(op.nn.adaptive_avg_pool2d(x, (1, 1)), (2, 3)),
        ],
    )
    def test_global_average_pooling_is_a_mean(self, pool: Callable[[Any], Any]) -> None:
        main = check(lambda b, x: b.emit(pool(x)), ["relax.mean"])
        attributes = main.body.blocks[0].bindings[0].value.attrs
        assert [int(axis) for axis in attributes["axis"]] == [2, 3]
        assert not attributes["keepdims"]

    def test_a_reshape_that_does_more_stays(self) -> None:
        def body(b: Any, x: Any) -> Any:
            return b.emit(op.reshape(b.emit(op.mean(x, [2, 3], keepdims=True)), (3, 2)))

        check(body, ["relax.mean", "relax.reshape"])

    def test_adaptive_pooling_to_even_parts_is_a_plain_one(self) -> None:
        def body(b: Any, x: Any) -> Any:
            return b.emit(op.nn.adaptive_avg_pool2d(x, (2, 3)))

        main = check(body, ["relax.nn.avg_pool2d"])
        attributes = main.body.blocks[0].bindings[0].value.attrs
        for name in ("pool_size", "strides"):
            assert [int(extent) for extent in attributes[name]] == [3, 2]

    def test_adaptive_pooling_to_uneven_parts_stays(self) -> None:
        pooled = "relax.nn.adaptive_avg_pool2d"
        check(lambda b, x: b.emit(op.nn.adaptive_avg_pool2d(x, (2, 4))), [pooled])

    @pytest.mark.parametrize(
        "nothing",
        [
            lambda x: op.reshape(x, (2, 3, 6, 6)),
            lambda x: op.astype(x, "float32"),
            lambda x: op.permute_dims(x, [0, 1, 2, 3]),
            lambda x: op.broadcast_to(x, (2, 3, 6, 6)),
        ],
    )
    def test_what_changes_nothing_goes(self, nothing: Callable[[Any], Any]) -> None:
        check(lambda b, x: b.emit(op.exp(b.emit(nothing(x)))), ["relax.exp"])

    def test_dropout_goes(self) -> None:
        def body(b: Any, x: Any) -> Any:
            pair = b.emit(op.nn.dropout(x, 0.5))
            return b.emit(op.exp(b.emit(relax.TupleGetItem(pair, 0))))

        after, _ = canonicalise(make(body), {})
        assert operators(after["main"]) == ["relax.exp"]

    def test_dropout_whose_mask_is_read_is_refused(self) -> None:
        def body(b: Any, x: Any) -> Any:
            pair = b.emit(op.nn.dropout(x, 0.5))
            return b.emit(op.exp(b.emit(relax.TupleGetItem(pair, 1))))

        with pytest.raises(UnsupportedOperatorError, match="dropout"):
            canonicalise(make(body), {})

    @pytest.mark.parametrize(
        ("exponent", "products"), [(1, 0), (2, 1), (3, 2), (4, 2), (7, 4), (8, 3)]
    )
    def test_small_whole_powers_are_products(self, exponent: int, products: int) -> None:
        power = relax.const(np.float32(exponent))
        check(lambda b, x: op.exp(b.emit(op.power(x, power))), [MUL] * products + ["relax.exp"])

    @pytest.mark.parametrize("exponent", [0, -2, 2.5, 9])
    def test_other_powers_stay(self, exponent: float) -> None:
        power = relax.const(np.float32(exponent))
        check(lambda b, x: b.emit(op.power(x, power)), ["relax.power"])

    @pytest.mark.parametrize(("function", "joined"), [(op.sinh, "relax.subtract"), (op.cosh, ADD)])
    def test_hyperbolic_functions_are_spelled_out(self, function: Any, joined: str) -> None:
        check(
            lambda b, x: b.emit(function(x)),
            ["relax.negative", "relax.exp", "relax.exp", joined, MUL],
        )

    def test_indices_outside_a_tensor_wrap(self) -> None:
        def body(b: Any, x: Any) -> Any:
            return b.emit(op.take(x, b.emit(op.astype(x, "int32")), axis=0))

        module, _ = canonicalise(make(body, (4,)), {})
        (y,) = run_relax(module, [np.array([0, -1, 5, 1000], "float32")])
        assert y.tolist() == [0, 1000, -1, 0]

    def test_what_changes_something_stays(self) -> None:
        check(lambda b, x: b.emit(op.permute_dims(x, [0, 2, 3, 1])), ["relax.permute_dims"])


class TestWhole:
    def test_constants_are_folded_and_equal_calls_merged(self) -> None:
        def body(b: Any, x: Any) -> Any:
            weight = b.emit(op.permute_dims(const(4, 3), [1, 0]))
            first, second = (b.emit(op.nn.avg_pool2d(x, (2, 2), (2, 2))) for _ in range(2))
            both = b.emit(op.add(first, second))
            return b.emit(op.matmul(b.emit(op.mean(both, [2, 3])), weight))

        check(body, ["relax.nn.avg_pool2d", ADD, "relax.mean", "relax.matmul"])

    def test_tuples_are_seen_through(self) -> None:
        def body(b: Any, x: Any) -> Any:
            pair = b.emit(relax.Tuple([b.emit(op.exp(x)), b.emit(op.zeros_like(x))]))
            return b.emit(op.nn.relu(b.emit(relax.TupleGetItem(pair, 0))))

        check(body, ["relax.exp", "relax.nn.relu"])

    def test_variables_are_named_after_modules(self) -> None:
        def body(b: Any, x: Any) -> Any:
            result = b.emit(conv(x), "c")
            result = b.emit(op.add(result, const(1, 6, 1, 1)), "d")
            return b.emit(op.exp(b.emit(op.nn.softmax(result, 1), "e")), "f")

        paths = {"d": "stages.0.conv", "e": "stages.0", "f": ""}
        module, paths = canonicalise(make(body), paths)
        names = [binding.var.name for binding in module["main"].body.blocks[0].bindings]
        assert names[:3] == ["stages_0_conv", "stages_0_conv1", "stages_0_softmax"]
        assert paths == {
            "stages_0_conv": "stages.0.conv",
            "stages_0_conv1": "stages.0.conv",
            "stages_0_softmax": "stages.0",
        }

    def test_a_division_by_zero_is_refused(self) -> None:
        with pytest.raises(ModelError, match="Divide by zero") as caught:
            canonicalise(make(lambda b, x: b.emit(op.divide(x, relax.const(0.0)))), {})
        assert "division by zero" in caught.value.hint

    def test_what_else_tvm_cannot_fold_is_no_division(self) -> None:
        with pytest.raises(ModelError, match=r"cannot be computed|min_value") as caught:
            canonicalise(make(lambda b, x: b.emit(op.max(x, 1)), dtype="bool"), {})
        assert "division" not in caught.value.hint

    def test_a_symbolic_shape_is_refused(self) -> None:
        extent = tvm.tirx.Var("n", "int64")
        module = make(lambda b, x: b.emit(op.exp(x)), (extent, 3))  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="symbolic"):
            canonicalise(module, {})

    def test_an_operator_that_does_not_compile_is_refused(self) -> None:
        with pytest.raises(UnsupportedOperatorError, match=r"`relax\.sort`"):
            canonicalise(make(lambda b, x: b.emit(op.sort(x))), {})

    def test_a_number_is_refused(self) -> None:
        with pytest.raises(UnsupportedOperatorError, match=r"`relax\.max` reduces a whole"):
            canonicalise(make(lambda b, x: b.emit(op.max(x))), {})

    def test_half_precision_is_refused(self) -> None:
        with pytest.raises(ModelError, match="float16"):
            canonicalise(make(lambda b, x: b.emit(op.exp(x)), dtype="float16"), {})

    def test_control_flow_is_refused(self) -> None:
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((2,), "float32"))
        with builder.function("main", [x]):
            builder.emit_func_output(builder.emit(op.exp(x)))
        with pytest.raises(ModelError, match="control flow"):
            canonicalise(builder.get(), {})

    def test_a_network_that_computes_nothing_is_refused(self) -> None:
        with pytest.raises(ModelError, match="computes nothing"):
            canonicalise(make(lambda _, x: x), {})
