# SPDX-License-Identifier: Apache-2.0
"""Every point of every family computes what PyTorch computes."""

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from one_kernel import HOST, constants, convolution, lowered, relative, run_point
from tvm import relax, s_tir

from schedules import dense, winograd, winograd_pixels, winograd_tiles
from schedules.machines import X86_64_V4, machine_of
from tvmattend.codegen.intrinsics import use_vector_math
from tvmattend.target import TargetSpec, parse_target
from tvmattend.transform.layout import CHANNELS, PIXELS
from tvmattend.tuning.tasks import extract_tasks

# Accumulation order differs from PyTorch's; 1e-5 relative to the largest output is 100 ulp.
TOLERANCE = 1e-5


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    layout=st.sampled_from([PIXELS, CHANNELS]),
    columns=st.sampled_from([1, 4]),
    per_in=st.integers(1, 11),
    per_out=st.integers(1, 37),
    height=st.integers(3, 19),
    width=st.integers(3, 19),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 1), (5, 5)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    batch=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_convolutions_of_any_shape(
    layout, columns, per_in, per_out, height, width, kernel, stride, batch, data
):
    padding = (kernel[0] // 2, kernel[1] // 2)
    random = np.random.default_rng(per_in * 100 + per_out)
    x = random.standard_normal((batch, columns * per_in, height, width)).astype("float32")
    weight = random.standard_normal((columns * per_out, per_in, *kernel)).astype("float32")
    array, mod, wanted = convolution(layout, x, weight, stride, padding, columns)
    (task,) = extract_tasks(mod, HOST)
    family = "conv2d_pixels" if layout == PIXELS else "conv2d_channels"
    nhwc = (batch, height, width, columns * per_in)
    machine = machine_of(HOST.to_tvm())
    tiling = winograd_tiles.tiling_for(nhwc, weight.shape, columns, machine)
    if winograd.suits(per_in, per_out, kernel, stride, (*padding, *padding)):
        if layout == PIXELS and winograd.cuts(height):
            family = winograd_pixels.NAME
        elif layout == CHANNELS and tiling is not None:
            family = winograd_tiles.NAME
    assert task.space.kernel == family
    points = list(task.space.points(seed=1))
    point = data.draw(st.sampled_from([points[0], points[len(points) // 2], points[-1]]))
    (packed,) = constants(mod)
    found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
    assert relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("groups", "channels", "features", "size", "kernel", "stride"),
    [
        (4, 93, 93, 7, 3, 1),
        (1, 84, 176, 14, 1, 1),
        (4, 11, 12, 14, 3, 2),
        (1, 6, 40, 13, 3, 1),
    ],
)
def test_panels(groups, channels, features, size, kernel, stride):
    """The form that Arm's four lanes take, with the pixels of a tile side by side, run here."""
    four_lanes = parse_target("cortex-a72")
    random = np.random.default_rng(0)
    x = random.standard_normal((1, groups * channels, size, size)).astype("float32")
    weight = random.standard_normal((groups * features, channels, kernel, kernel))
    array, mod, wanted = convolution(
        CHANNELS, x, weight.astype("float32"), (stride,) * 2, (kernel // 2,) * 2, groups, four_lanes
    )
    (task,) = extract_tasks(mod, four_lanes)
    (packed,) = constants(mod)
    points = list(task.space.points(seed=1))
    for point in (points[0], points[-1]):
        found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
        assert relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "features", "height", "width", "batch"),
    [(84, 176, 4, 7, 1), (16, 372, 7, 7, 2), (5, 744, 5, 3, 1), (9, 8, 2, 5, 3), (7, 40, 1, 1, 1)],
)
def test_pixels_in_one_line(channels, features, height, width, batch):
    """The form of pointwise convolutions for AVX2, run here."""
    eight_lanes = parse_target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v3")
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, channels, height, width)).astype("float32")
    weight = random.standard_normal((features, channels, 1, 1)).astype("float32")
    array, mod, wanted = convolution(CHANNELS, x, weight, (1, 1), (0, 0), 1, eight_lanes)
    (task,) = extract_tasks(mod, eight_lanes)
    assert int(task.mod["main"].body.block.alloc_buffers[0].shape[1]) == 1
    (packed,) = constants(mod)
    for point in list(task.space.points(seed=1))[:8]:
        found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
        assert relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize("layout", [PIXELS, CHANNELS])
def test_wrong_weights_are_seen(layout):
    """The comparison above can fail: a swapped pair of channels is far outside the tolerance."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 8, 9, 9)).astype("float32")
    weight = random.standard_normal((12, 2, 3, 3)).astype("float32")
    array, mod, wanted = convolution(layout, x, weight, (1, 1), (1, 1), 4)
    (task,) = extract_tasks(mod, HOST)
    (packed,) = constants(mod)
    swapped = np.roll(packed, 1, axis=-1)
    found = run_point(task, task.space.default, [array, swapped, np.zeros_like(wanted)])
    assert relative(found, wanted) > 0.1


@pytest.mark.parametrize(
    ("shape", "features"),
    [((1, 744), 1000), ((4, 33), 7), ((2, 64), 128), ((1, 50), 75), ((3, 20), 1)],
)
def test_linear(shape, features):
    random = np.random.default_rng(0)
    x = random.standard_normal(shape).astype("float32")
    weight = random.standard_normal((shape[1], features)).astype("float32")
    mod = lowered(lambda _, var: relax.op.matmul(var, relax.const(weight)), [x])
    (task,) = extract_tasks(mod, HOST)
    assert task.space.kernel == "dense"
    (packed,) = constants(mod)
    out = np.zeros((shape[0], features), "float32")
    for point in list(task.space.points(seed=0))[:4]:
        assert relative(run_point(task, point, [x, packed, out]), x @ weight) < TOLERANCE


@pytest.mark.parametrize(
    ("features", "vectors"), [(1, 1), (16, 1), (17, 2), (112, 7), (113, 8), (1000, 64)]
)
def test_few_features_fill_the_vectors_that_they_need(features, vectors):
    """Eight at once hide an addition's latency; a head of ten classes is no head of 128."""
    packed = dense.pack(np.ones((3, features), "float32"), X86_64_V4)
    assert packed.shape == (vectors, 3, 16)
    assert packed.sum() == 3 * features


@pytest.mark.parametrize(("axis", "shape"), [(1, (2, 40, 6, 6)), (3, (1, 5, 7, 93)), (1, (1, 10))])
def test_softmax(axis, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype("float32") * 4
    mod = lowered(lambda _, var: relax.op.nn.softmax(var, axis), [x])
    (task,) = extract_tasks(mod, HOST)
    assert task.space.kernel == "softmax"
    wanted = torch.softmax(torch.from_numpy(x), axis).numpy()
    found = run_point(task, task.space.default, [x, np.zeros_like(x)])
    assert relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: relax.op.nn.softmax(x, 0), lambda x: torch.softmax(x, 0)),
        (lambda x: relax.op.nn.log_softmax(x, 0), lambda x: torch.log_softmax(x, 0)),
        (
            lambda x: relax.op.nn.layer_norm(
                x, relax.const(np.ones(37, "float32")), relax.const(np.zeros(37, "float32")), [0]
            ),
            lambda x: torch.nn.functional.layer_norm(x, (37,)),
        ),
    ],
    ids=["softmax", "log_softmax", "layer_norm"],
)
def test_what_sums_up_the_only_axis_is_left_plain(ours, theirs):
    """The sum is one number, which has no loop to schedule."""
    x = np.random.default_rng(0).standard_normal(37).astype("float32") * 4
    mod = lowered(lambda _, var: ours(var), [x])
    (task,) = extract_tasks(mod, HOST)
    assert task.space.kernel == "plain"
    arrays = [x, *constants(mod), np.zeros_like(x)]
    found = run_point(task, task.space.default, arrays)
    assert relative(found, theirs(torch.from_numpy(x)).numpy()) < TOLERANCE


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("pool", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pools(layout, pool, stride, padding, kind):
    x = np.random.default_rng(0).standard_normal((2, 10, 13, 11)).astype("float32")
    reference = torch.nn.functional.avg_pool2d if kind == "avg" else torch.nn.functional.max_pool2d
    wanted = reference(torch.from_numpy(x), pool, stride, padding)
    op = relax.op.nn.avg_pool2d if kind == "avg" else relax.op.nn.max_pool2d
    options = {"count_include_pad": True} if kind == "avg" else {}
    if layout == "NHWC":
        x, wanted = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), wanted.permute(0, 2, 3, 1)
    wanted = np.ascontiguousarray(wanted.numpy())

    def function(builder, var):
        return op(var, (pool, pool), (stride, stride), (padding, padding), layout=layout, **options)

    (task,) = extract_tasks(lowered(function, [x]), HOST)
    separable = (kind, layout) == ("avg", "NCHW")
    assert task.space.kernel == ("average_pool" if separable else "reduction")
    for point in task.space.points(seed=0):
        assert relative(run_point(task, point, [x, np.zeros_like(wanted)]), wanted) < TOLERANCE


@pytest.mark.parametrize("axes", [[1, 2], [2, 3]])
def test_mean(axes):
    x = np.random.default_rng(0).standard_normal((2, 7, 7, 20)).astype("float32")
    mod = lowered(lambda _, var: relax.op.mean(var, axes, keepdims=True), [x])
    (task,) = extract_tasks(mod, HOST)
    wanted = x.mean(axis=tuple(axes), keepdims=True)
    found = run_point(task, task.space.default, [x, np.zeros_like(wanted)])
    assert relative(found, wanted) < TOLERANCE


def test_exp_is_accurate_and_finite():
    use_vector_math()
    x = np.linspace(-120, 88, 4096, dtype="float32")
    mod = lowered(lambda _, var: relax.op.exp(var), [x])
    (task,) = extract_tasks(mod, HOST)
    found = run_point(task, task.space.default, [x, np.zeros_like(x)])
    wanted = np.exp(x.astype("float64"))
    normal = x >= -87
    error = np.abs(found[normal] - wanted[normal]) / wanted[normal]
    # 7.5e-8 for the polynomial, 1.3e-8 for each unit of x / ln 2, a few roundings.
    assert error[np.abs(x[normal]) < 10].max() < 4e-7
    assert error.max() < 2e-6
    assert np.isfinite(found).all()
    assert (found[~normal] < 2e-38).all()


def test_sigmoid_is_accurate_and_finite():
    x = np.linspace(-100, 100, 4096, dtype="float32")
    mod = lowered(lambda _, var: relax.op.sigmoid(var), [x])
    (task,) = extract_tasks(mod, HOST)
    found = run_point(task, task.space.default, [x, np.zeros_like(x)])
    wanted = 1 / (1 + np.exp(-x.astype("float64")))
    normal = x >= -83
    error = np.abs(found[normal] - wanted[normal]) / wanted[normal]
    # 4.3e-7 for the fraction, 1.3e-8 for each unit of x / ln 2, a few roundings.
    assert error[np.abs(x[normal]) < 10].max() < 8e-7
    assert error.max() < 2e-6
    assert np.isfinite(found).all()
    assert (np.abs(found[~normal]) < 1e-36).all()


def test_tanh_keeps_the_digits_of_small_numbers():
    small = np.geomspace(1e-30, 1, 2000, dtype="float32")
    x = np.concatenate([-small, [0.0], small, np.linspace(-100, 100, 4095)]).astype("float32")
    mod = lowered(lambda _, var: relax.op.tanh(var), [x])
    (task,) = extract_tasks(mod, HOST)
    found = run_point(task, task.space.default, [x, np.zeros_like(x)])
    wanted = np.tanh(x.astype("float64"))
    error = np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-45)
    # 1e-8 for the fraction, 1.3e-8 for each unit of 2 x / ln 2 (up to 1, above that in 1 - tanh).
    assert error.max() < 5e-7
    assert np.abs(found).max() <= 1


@pytest.mark.parametrize("lanes", [12, 20, 48])
@pytest.mark.parametrize("target", ["cortex-a72", "host"])
def test_sigmoid_of_vectors_that_no_halving_makes_registers(target, lanes):
    spec = parse_target(target)
    x = np.linspace(-9, 9, 5 * lanes, dtype="float32").reshape(5, lanes)
    (task,) = extract_tasks(lowered(lambda _, var: relax.op.sigmoid(var), [x], spec), spec)
    use_vector_math()
    schedule = s_tir.Schedule(task.mod)
    (block,) = schedule.get_child_blocks(schedule.get_sblock("root", func_name="main"))
    schedule.vectorize(schedule.get_loops(block)[-1])
    with spec.to_tvm() as machine:
        library = tvm.tirx.build(schedule.mod, target=machine)
    assert "sigmoid" not in library.inspect_source("asm"), "a call of libm or of nothing"
    if target == "host":
        out = tvm.runtime.tensor(np.zeros_like(x))
        library["main"](tvm.runtime.tensor(x), out)
        assert relative(out.numpy(), 1 / (1 + np.exp(-x.astype("float64")))) < 8e-7


@pytest.mark.parametrize("target", ["cortex-a72", "host", "llvm -mcpu=x86-64-v3", "cortex-a53"])
def test_every_kernel_of_the_network_schedules(target, tiny_module):
    """All points of all kernels of a network are valid schedules for every machine."""
    from tvmattend.transform import lower

    spec: TargetSpec = parse_target(target)
    for task in extract_tasks(lower(tiny_module, spec), spec):
        points = list(task.space.points(seed=3))
        for point in [points[0], *points[1:-1][:2], points[-1]]:
            schedule = s_tir.Schedule(task.mod)
            task.space.apply(schedule, point)
        assert task.space.kernel != "plain", f"{task.name} has no family"


@pytest.mark.emulated
def test_sigmoid_on_the_cortex_a72(emulated_board, tmp_path):
    """The Arm form of the reciprocal (FRECPE), for every vector length that is used."""
    from tvmattend.codegen.link import Linker
    from tvmattend.device.endpoint import close_session, connect, parse_endpoint

    spec = parse_target("cortex-a72")
    x = np.linspace(-83, 86, 1 << 12, dtype="float32")
    wanted = 1 / (1 + np.exp(-x.astype("float64")))
    mod = lowered(lambda _, var: relax.op.sigmoid(var), [x], spec)
    (task,) = extract_tasks(mod, spec)
    session = connect(parse_endpoint(emulated_board))
    try:
        for vectors in (1, 2, 4):
            schedule = s_tir.Schedule(task.mod)
            task.space.apply(schedule, {"vectors": vectors})
            use_vector_math()
            with spec.to_tvm() as target:
                del target
                library = tvm.compile(schedule.mod, target=spec.to_tvm())
            file = tmp_path / f"sigmoid{vectors}.so"
            library.export_library(str(file), fcompile=Linker(spec))
            session.upload(bytearray(file.read_bytes()), file.name)
            kernel = session.load_module(file.name)
            out = tvm.runtime.tensor(np.zeros_like(x), session.cpu())
            kernel["main"](tvm.runtime.tensor(x, session.cpu()), out)
            error = np.abs(out.numpy() - wanted) / wanted
            assert error[np.abs(x) < 10].max() < 8e-7
            assert error.max() < 2e-6
    finally:
        close_session(session)
