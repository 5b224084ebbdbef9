# SPDX-License-Identifier: Apache-2.0
"""Winograd's F(4, 3): the identity itself, and the kernels made of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_kernel import HOST, constants, convolution, relative, run_point

from schedules import winograd, winograd_channels, winograd_pixels
from schedules.machines import AARCH64, X86_64_V4
from tvmattend.transform.layout import CHANNELS, PIXELS
from tvmattend.tuning.tasks import extract_tasks

# F(4, 3) multiplies by up to 8 and divides by 24: about four times the direct sum's error.
TOLERANCE = 5e-6


FAMILY = {PIXELS: winograd_pixels.NAME, CHANNELS: winograd_channels.NAME}
ALGORITHMS = [winograd.F2, winograd.F4]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_identity_in_double_precision(algorithm):
    random = np.random.default_rng(0)
    rows, taps = random.standard_normal(algorithm.inputs), random.standard_normal(3)
    weight = algorithm.transform_weights(taps.reshape(1, 1, 3, 1))[0, 0, :, 0]
    products = weight * np.array(algorithm.transform_inputs(list(rows)))
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


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    layout=st.sampled_from([PIXELS, CHANNELS]),
    columns=st.sampled_from([1, 4]),
    per_in=st.integers(6, 23),
    per_out=st.integers(6, 23),
    tiles=st.integers(1, 10),
    width=st.integers(3, 30),
    batch=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_convolutions(layout, columns, per_in, per_out, tiles, width, batch, data):
    random = np.random.default_rng(per_in * 100 + per_out)
    x = random.standard_normal((batch, columns * per_in, 2 * tiles, width)).astype("float32")
    weight = random.standard_normal((columns * per_out, per_in, 3, 3)).astype("float32")
    array, mod, wanted = convolution(layout, x, weight, (1, 1), (1, 1), columns)
    (task,) = extract_tasks(mod, HOST)
    assert task.space.kernel == FAMILY[layout]
    points = list(task.space.points(seed=1))
    point = data.draw(st.sampled_from([points[0], points[len(points) // 2], points[-1]]))
    (packed,) = constants(mod)
    found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
    assert relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize("layout", [PIXELS, CHANNELS])
def test_wrong_weights_are_seen(layout):
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 8, 8, 9)).astype("float32")
    weight = random.standard_normal((8, 8, 3, 3)).astype("float32")
    array, mod, wanted = convolution(layout, x, weight, (1, 1), (1, 1), 1)
    (task,) = extract_tasks(mod, HOST)
    (packed,) = constants(mod)
    axis = 1 if layout == PIXELS else 2
    swapped = np.ascontiguousarray(np.take(packed, [1, 0, 2, 3, 4, 5], axis))
    found = run_point(task, task.space.default, [array, swapped, np.zeros_like(wanted)])
    assert relative(found, wanted) > 0.1


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("height", 15),
        ("channels", 3),
        ("features", 5),
        ("kernel", (5, 5)),
        ("strides", (2, 2)),
        ("padding", (0, 0, 0, 0)),
    ],
)
def test_what_it_does_not_take(change, value):
    good = {
        "height": 16,
        "channels": 8,
        "features": 8,
        "kernel": (3, 3),
        "strides": (1, 1),
        "padding": (1, 1, 1, 1),
    }
    assert winograd.applies(**good)
    assert not winograd.applies(**{**good, change: value})


@pytest.mark.parametrize("machine", [AARCH64, X86_64_V4])
def test_a_slab_covers_its_rows(machine):
    for height, width in [(112, 112), (56, 56), (28, 28), (24, 17), (4, 3)]:
        slab = winograd_pixels.choose_slab(height, width, 10, 10, 4, machine)
        assert height // 4 % slab.rows == 0
        assert slab.pitch >= width + 2
        assert slab.vectors * machine.lanes >= (slab.rows - 1) * slab.pitch + width
