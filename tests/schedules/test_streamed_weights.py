# SPDX-License-Identifier: Apache-2.0
"""Sums whose weights come from DRAM to several cores; run here with Arm's four lanes."""

from dataclasses import replace

import numpy as np
import pytest
from one_kernel import constants, convolution, relative, run_point

from schedules import streamed_weights
from schedules.machines import CORTEX_A72, X86_64, X86_64_V3
from tvmattend.target import parse_target
from tvmattend.transform.layout import CHANNELS
from tvmattend.tuning.tasks import extract_tasks

# Accumulation order differs from PyTorch's; 1e-5 relative to the largest output is 100 ulp.
TOLERANCE = 1e-5


def _task(channels, features, size, kernel=1, groups=1, batch=1, threads=4):
    target = parse_target("cortex-a72", threads)
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, groups * channels, *size)).astype("float32")
    weight = random.standard_normal((groups * features, channels, kernel, kernel))
    array, mod, wanted = convolution(
        CHANNELS, x, weight.astype("float32"), (1, 1), (kernel // 2,) * 2, groups, target
    )
    (task,) = extract_tasks(mod, target)
    (packed,) = constants(mod)
    return task, array, packed, wanted


@pytest.mark.parametrize(
    ("channels", "features", "size", "kernel", "groups", "batch"),
    [
        (372, 372, (7, 7), 1, 1, 1),  # parts of 124 channels; a block of 4 rows, one of 3
        (93, 93, (7, 7), 3, 4, 1),
        (352, 744, (7, 7), 1, 1, 1),
        (67, 96, (8, 8), 1, 1, 2),  # a prime number of channels: no parts
        (16, 100, (5, 3), 3, 2, 3),
        (64, 40, (1, 1), 1, 1, 1),
    ],
)
def test_every_kind_of_point(channels, features, size, kernel, groups, batch):
    task, array, packed, wanted = _task(channels, features, size, kernel, groups, batch)
    assert any(knob.name.endswith("features") for knob in task.space.knobs)
    points = list(task.space.points(seed=1))
    for point in (task.space.default, points[0], points[len(points) // 2], points[-1]):
        found = run_point(task, point, [array, packed, np.zeros_like(wanted)])
        assert relative(found, wanted) < TOLERANCE


def test_a_block_is_one_vector_by_all_pixels_that_registers_hold():
    task, *_, wanted = _task(372, 372, (7, 7))
    assert dict(task.space.default) == {"tile": 407, "parts": 3, "features": 24}
    # Each job holds its sums once: 4 jobs of 24 vectors, the last of 21.
    assert -(-wanted.shape[-1] // 4 // 24) == 4


def test_weights_are_packed_one_vector_a_block():
    assert _task(372, 372, (7, 7))[2].shape == (1, 93, 1, 1, 372, 1, 4)
    assert _task(372, 372, (7, 7), threads=1)[2].shape == (1, 31, 1, 1, 372, 3, 4)


@pytest.mark.parametrize(
    ("machine", "pixels", "channels", "why"),
    [
        (CORTEX_A72, 49, 372, "one core has DRAM for itself"),
        (replace(CORTEX_A72, threads=4), 196, 372, "seven passes outweigh the first"),
        (replace(CORTEX_A72, threads=4), 49, 3000, "the map is larger than the weights"),
        (replace(X86_64_V3, threads=4), 49, 372, "DRAM is faster than the sums"),
        (replace(X86_64, threads=4), 49, 372, "16 registers hold no such block"),
    ],
)
def test_where_it_does_not_pay(machine, pixels, channels, why):
    assert streamed_weights.suits(372 * 372, 49, 372, replace(CORTEX_A72, threads=4))
    assert not streamed_weights.suits(372 * 372, pixels, channels, machine), why
