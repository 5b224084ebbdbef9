# SPDX-License-Identifier: Apache-2.0
"""Winograd's F(2, 3) and F(4, 3): the identity itself, and the kernels made of it."""

import re
from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from one_kernel import HOST, constants, convolution, relative, run_point

from schedules import conv2d_channels, winograd, winograd_pixels, winograd_tiles
from schedules.machines import CORTEX_A72, X86_64_V3, X86_64_V4, machine_of
from tvmattend.target import parse_target
from tvmattend.transform.layout import CHANNELS, PIXELS
from tvmattend.tuning.tasks import extract_tasks

# F(4, 3) multiplies by up to 8 and divides by 24: about four times the direct sum's error.
TOLERANCE = 5e-6


ALGORITHMS = [winograd.F2, winograd.F4]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_identity_in_double_precision(algorithm):
    random = np.random.default_rng(0)
    rows, taps = random.standard_normal(algorithm.inputs), random.standard_normal(3)
    products = (algorithm.matrix() @ taps) * np.array(algorithm.transform_inputs(list(rows)))
    found = algorithm.transform_outputs(list(products))
    assert np.allclose(found, np.correlate(rows, taps, "valid"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("first", "last"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_row_of_weight_zero_counts_as_padding(algorithm, first, last):
    random = np.random.default_rng(1)
    rows = random.standard_normal(algorithm.inputs)
    padded = np.array([rows[0] * first, *rows[1:-1], rows[-1] * last])
    assert np.allclose(
        algorithm.transform_inputs(list(rows), first, last),
        algorithm.transform_inputs(list(padded)),
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    columns=st.sampled_from([1, 4]),
    per_in=st.integers(6, 23),
    per_out=st.integers(6, 23),
    tiles=st.integers(1, 10),
    width=st.integers(3, 30),
    batch=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_convolutions_of_pixels(columns, per_in, per_out, tiles, width, batch, data):
    check(PIXELS, (batch, columns, per_in, per_out, 2 * tiles, width), data)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    columns=st.sampled_from([1, 4]),
    per_in=st.integers(6, 23),
    per_out=st.integers(6, 23),
    height=st.integers(4, 17),
    width=st.integers(5, 17),
    batch=st.sampled_from([1, 4]),
    data=st.data(),
)
def test_convolutions_of_tiles(columns, per_in, per_out, height, width, batch, data):
    check(CHANNELS, (batch, columns, per_in, per_out, height, width), data)


def check(layout, shape, data):
    batch, columns, per_in, per_out, height, width = shape
    random = np.random.default_rng(per_in * 100 + per_out)
    x = random.standard_normal((batch, columns * per_in, height, width)).astype("float32")
    weight = random.standard_normal((columns * per_out, per_in, 3, 3)).astype("float32")
    array, mod, wanted = convolution(layout, x, weight, (1, 1), (1, 1), columns)
    (task,) = extract_tasks(mod, HOST)
    nhwc = (batch, height, width, columns * per_in)
    machine = machine_of(HOST.to_tvm())
    tiling = winograd_tiles.tiling_for(nhwc, weight.shape, columns, machine)
    family = winograd_tiles.NAME if tiling else conv2d_channels.NAME
    assert task.space.kernel == (winograd_pixels.NAME if layout == PIXELS else family)
    points = list(task.space.points(seed=1))
    point = data.draw(st.sampled_from([points[0], points[len(points) // 2], points[-1]]))
    (packed,) = constants(mod)
    found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
    assert relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize("target", ["cortex-a72", "host"])
@pytest.mark.parametrize("tile", [(2, 2), (2, 4), (4, 2), (4, 4)])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 5), (13, 14), (9, 3)])
def test_every_shape_of_tile(tile, height, width, target, monkeypatch):
    """Tiles that hang over the lower edge, the right one, both or none; packed weights and raw."""
    algorithms = {2: winograd.F2, 4: winograd.F4}
    pair = (algorithms[tile[0]], algorithms[tile[1]])
    monkeypatch.setattr(winograd_tiles, "_SHAPES", (pair,))
    monkeypatch.setattr(winograd_tiles, "_TRANSFORMS", -10)
    spec = parse_target(target)
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 2 * 9, height, width)).astype("float32")
    weight = random.standard_normal((2 * 13, 9, 3, 3)).astype("float32")
    array, mod, wanted = convolution(CHANNELS, x, weight, (1, 1), (1, 1), 2, spec)
    (task,) = extract_tasks(mod, spec)
    assert task.space.kernel == winograd_tiles.NAME
    (packed,) = constants(mod)
    # All kinds of jobs with every tile and on every map, though not of every tile on every map.
    by_column = (sum(tile) // 2 + height) % 3
    for point in (
        {**task.space.default, "by_column": by_column},
        list(task.space.points(seed=1))[-1],
    ):
        found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
        assert relative(found, wanted) < 2 * TOLERANCE  # both axes


def kept_buffers(task, point):
    """Shapes of a kernel's buffers, as small as their loops allow, by name."""
    sch = tvm.s_tir.Schedule(task.mod)
    task.space.apply(sch, point)
    passes = tvm.s_tir.transform
    kept = tvm.transform.Sequential([
        passes.PlanAndUpdateBufferAllocationLocation(),
        passes.ConvertBlocksToOpaque(),
        passes.CompactBufferAllocation(),
    ])(sch.mod)
    return {
        name: [int(extent) for extent in re.findall(r"\((\d+)\)", shape)]
        for name, shape in re.findall(r"(\w+) = T.*alloc_buffer\(\((.*)\)\)", kept.script())
    }


@pytest.mark.parametrize(("by_column", "rows"), [(1, 4), (2, 1)])
def test_a_job_keeps_the_products_of_its_rows_of_tiles(by_column, rows):
    four_lanes = parse_target("cortex-a72")
    x = np.zeros((1, 4 * 8, 14, 14), dtype="float32")
    weight = np.zeros((4 * 12, 8, 3, 3), dtype="float32")
    _, mod, _ = convolution(CHANNELS, x, weight, (1, 1), (1, 1), 4, four_lanes)
    (task,) = extract_tasks(mod, four_lanes)
    shapes = kept_buffers(task, {**task.space.default, "by_column": by_column})
    points, tiles = shapes[winograd_tiles.NAME][2:4]
    assert tiles == rows * 7
    assert shapes["slab"][1:3] == [points, tiles]


@pytest.mark.parametrize(
    ("machine", "threads", "pixels", "tile"),
    [
        (CORTEX_A72, 1, 7, (4, 2)),
        (CORTEX_A72, 4, 7, None),  # DRAM is shared: every weight more is waited for
        (CORTEX_A72, 1, 14, (4, 2)),
        (CORTEX_A72, 4, 14, (4, 2)),
        (X86_64_V3, 1, 7, (4, 2)),
        (X86_64_V3, 1, 5, None),  # too few tiles for the transform of a weight
        (X86_64_V4, 1, 14, (4, 2)),
        (X86_64_V4, 1, 1, None),
    ],
)
def test_tiles_of_a_machine(machine, threads, pixels, tile):
    machine = replace(machine, threads=threads)
    tiling = winograd_tiles.tiling_for((1, pixels, pixels, 40), (40, 10, 3, 3), 4, machine)
    assert (tiling and (tiling.rows.outputs, tiling.cols.outputs)) == tile


@pytest.mark.parametrize(
    ("machine", "channels", "tile"),
    [
        (CORTEX_A72, 44, (2, 2)),
        (CORTEX_A72, 93, None),
        (X86_64_V3, 93, (4, 2)),  # kept for some features at a time
        (X86_64_V3, 341, (4, 2)),
        (X86_64_V3, 342, (2, 2)),
        (X86_64_V4, 342, None),
    ],
)
def test_weights_stay_small(machine, channels, tile):
    """Tiles are larger for fewer weights; 44 and 93 channels a column are AttendNeXt's."""
    kernels = (4 * channels, channels, 3, 3)
    tiling = winograd_tiles.tiling_for((1, 14, 14, 4 * channels), kernels, 4, machine)
    assert (tiling and (tiling.rows.outputs, tiling.cols.outputs)) == tile


@pytest.mark.parametrize(
    ("batch", "threads", "channels", "tile"),
    [(1, 1, 341, (4, 2)), (2, 2, 341, (4, 2)), (1, 2, 341, None), (1, 2, 52, (4, 2))],
)
def test_fewer_columns_than_threads_need_room_for_all_weights(batch, threads, channels, tile):
    machine = replace(X86_64_V3, threads=threads)
    kernels = (channels, channels, 3, 3)
    tiling = winograd_tiles.tiling_for((batch, 14, 14, channels), kernels, 1, machine)
    assert (tiling and (tiling.rows.outputs, tiling.cols.outputs)) == tile


@pytest.mark.parametrize(("machine", "vectors"), [(X86_64_V4, 1), (X86_64_V3, 3), (CORTEX_A72, 3)])
def test_vectors_whose_weights_are_kept_together(machine, vectors):
    assert winograd_tiles._most_vectors(24, 93, machine) == vectors


def test_a_job_transforms_the_weights_of_some_features_at_a_time():
    spec = parse_target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v4")
    x = np.zeros((1, 4 * 93, 7, 7), dtype="float32")
    weight = np.zeros((4 * 93, 93, 3, 3), dtype="float32")
    _, mod, _ = convolution(CHANNELS, x, weight, (1, 1), (1, 1), 4, spec)
    (task,) = extract_tasks(mod, spec)
    shapes = kept_buffers(task, task.space.default)
    assert shapes["tile_weights"] == [1, 24, 1, 93, 1, 16]
    assert shapes[winograd_tiles.NAME] == [1, 1, 24, 8, 6, 16]


def test_several_blocks_of_features():
    """An image a thread: with fewer, the transformed weights of 93 channels would be too many."""
    random = np.random.default_rng(0)
    x = random.standard_normal((HOST.num_cores, 93, 7, 7)).astype("float32")
    weight = random.standard_normal((93, 93, 3, 3)).astype("float32")
    array, mod, wanted = convolution(CHANNELS, x, weight, (1, 1), (1, 1), 1, HOST)
    (task,) = extract_tasks(mod, HOST)
    assert task.space.kernel == winograd_tiles.NAME
    (packed,) = constants(mod)
    for by_column in (0, 1, 2):
        point = {**task.space.default, "by_column": by_column}
        found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
        assert relative(found, wanted) < 2 * TOLERANCE  # both axes


@pytest.mark.parametrize("tile", [(2, 2), (4, 2)])
@pytest.mark.parametrize("machine", [CORTEX_A72, X86_64_V3, X86_64_V4])
def test_what_is_packed(machine, tile):
    """Transformed where a cache is dear, the nine taps elsewhere; zeros behind 13 features."""
    algorithms = {2: winograd.F2, 4: winograd.F4}
    tiling = winograd_tiles.Tiling(algorithms[tile[0]], algorithms[tile[1]], 8, 8)
    weight = np.random.default_rng(0).standard_normal((2 * 13, 5, 3, 3)).astype("float32")
    packed = winograd_tiles.pack(weight, 2, tiling, machine)
    raw = winograd_tiles.transforms_weights(machine)
    points = packed.transpose(0, 1, 4, 5, 2, 3) if raw else packed.transpose(0, 2, 4, 5, 3, 1)
    features = points.reshape(2, -1, *points.shape[4:])
    assert raw == (machine is not CORTEX_A72)
    assert features.shape[2:] == (5, 9 if raw else tiling.points)
    assert not features[:, 13:].any()
    wanted = weight
    if not raw:
        wanted = winograd.transform_tile_weights(tiling.rows, tiling.cols, weight)
    assert np.array_equal(features[:, :13].reshape(26, 5, -1), wanted.reshape(26, 5, -1))


def test_what_is_packed_for_pixels():
    """Three rows of taps: the library holds no weight twice."""
    weight = np.random.default_rng(0).standard_normal((2 * 13, 5, 3, 3)).astype("float32")
    packed = winograd_pixels.pack(weight, 2)
    assert packed.shape == (2, 3, 5, 3, 13)
    assert np.array_equal(packed.transpose(0, 4, 2, 1, 3).reshape(26, 5, 3, 3), weight)


_V4, _A72 = "x86_64-linux-gnu -mcpu=x86-64-v4", "aarch64-linux-gnu -mcpu=cortex-a72"


@pytest.mark.parametrize(
    ("core", "channels", "pixels", "threads", "columns"),
    [
        (_V4, 10, 56, 1, 1),
        (_V4, 21, 28, 1, 4),
        (_V4, 10, 56, 8, 4),
        # Slabs that fit a Cortex-A72's first-level cache: several jobs a column.
        (_A72, 10, 56, 4, 4),
    ],
)
def test_weights_of_a_column_are_transformed_once(core, channels, pixels, threads, columns):
    """By the job that computes it, or all before where several jobs share it."""
    spec = parse_target(f"llvm -mtriple={core} -num-cores={threads}")
    x = np.zeros((1, 4 * channels, pixels, pixels), dtype="float32")
    weight = np.zeros((4 * channels, channels, 3, 3), dtype="float32")
    _, mod, _ = convolution(PIXELS, x, weight, (1, 1), (1, 1), 4, spec)
    (task,) = extract_tasks(mod, spec)
    shapes = kept_buffers(task, task.space.default)
    assert shapes["tile_weights"] == [columns, 6, channels, 3, channels]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_taps_are_transformed_as_by_the_matrix(algorithm):
    taps = np.random.default_rng(0).standard_normal(3)
    found = algorithm.transform_taps(list(taps))
    assert np.allclose(found, algorithm.matrix() @ taps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("layout", [PIXELS, CHANNELS])
def test_wrong_weights_are_seen(layout):
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 8, 8, 9)).astype("float32")
    weight = random.standard_normal((8, 8, 3, 3)).astype("float32")
    array, mod, wanted = convolution(layout, x, weight, (1, 1), (1, 1), 1)
    (task,) = extract_tasks(mod, HOST)
    (packed,) = constants(mod)
    # The longest axis in front of the vectors: channels, taps or points, in reverse.
    swapped = np.ascontiguousarray(np.flip(packed, axis=packed.shape.index(max(packed.shape[:4]))))
    found = run_point(task, task.space.default, [array, swapped, np.zeros_like(wanted)])
    assert relative(found, wanted) > 0.1


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("channels", 3),
        ("features", 5),
        ("kernel", (5, 5)),
        ("strides", (2, 2)),
        ("padding", (0, 0, 0, 0)),
    ],
)
def test_what_it_does_not_take(change, value):
    good = {
        "channels": 8,
        "features": 8,
        "kernel": (3, 3),
        "strides": (1, 1),
        "padding": (1, 1, 1, 1),
    }
    assert winograd.suits(**good)
    assert not winograd.suits(**{**good, change: value})


def test_rows_of_pixels_are_cut_exactly():
    assert winograd.cuts(14)
    assert not winograd.cuts(15)


@pytest.mark.parametrize("machine", [CORTEX_A72, X86_64_V4])
def test_a_slab_covers_its_rows(machine):
    for height, width in [(112, 112), (56, 56), (28, 28), (24, 17), (4, 3)]:
        slab = winograd_pixels.choose_slab(height, width, 10, 10, 4, machine)
        assert height // 4 % slab.rows == 0
        assert slab.pitch >= width + 2
        assert slab.vectors * machine.lanes >= (slab.rows - 1) * slab.pitch + width
