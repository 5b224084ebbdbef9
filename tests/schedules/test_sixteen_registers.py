# SPDX-License-Identifier: Apache-2.0
"""What AVX2 asks of a kernel: blocks of eight sums or more, fed by few loads, that do not spill.

The kernels are made for `x86-64-v3` on whatever machine runs the tests, which runs them too.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from one_kernel import constants, convolution, relative, run_point
from tvm import s_tir, te

from schedules import conv2d_channels, conv2d_pixels, space_for, winograd_pixels, winograd_tiles
from schedules.machines import CORTEX_A72, X86_64_V3, X86_64_V4
from tvmattend.target import parse_target
from tvmattend.transform.layout import CHANNELS, PIXELS
from tvmattend.tuning.tasks import extract_tasks, kernel_module

AVX2 = parse_target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v3")
# Another order of the sum; Winograd multiplies by up to 8 and divides by 24.
TOLERANCE = 5e-6


def kernel(layout, groups, channels, features, height, width):
    """A padded 3x3 convolution: its task, its tensors without the output, PyTorch's answer."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, groups * channels, height, width)).astype("float32")
    weight = random.standard_normal((groups * features, channels, 3, 3)).astype("float32")
    array, mod, wanted = convolution(layout, x, weight, (1, 1), (1, 1), groups, AVX2)
    (task,) = extract_tasks(mod, AVX2)
    return task, [array, *constants(mod)], wanted


def assembly(task):
    schedule = s_tir.Schedule(task.mod)
    task.space.apply(schedule, task.space.default)
    with AVX2.to_tvm() as machine:
        return tvm.tirx.build(schedule.mod, target=machine).inspect_source("asm")


def innermost_loops(text):
    """Bodies of the loops that hold no other, as lines."""
    lines, labels, found = text.splitlines(), {}, []
    for place, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = place
        jump = re.match(r"\s+j\w+\s+(\.LBB\w+)", line)
        if jump and jump[1] in labels:
            start = labels[jump[1]]
            if not any(start <= other for other, _ in found):
                found.append((start, place))
    return [lines[start : end + 1] for start, end in found]


@pytest.mark.parametrize(
    ("block", "stall"),
    [((5, 2), 0.0), ((3, 3), 0.0), ((4, 3), 0.0), ((3, 2), 8 / 6 - 1), ((7, 1), 8 / 7 - 1)],
)
def test_a_block_waits_for_eight_multiply_adds_or_its_loads(block, stall):
    assert X86_64_V3.stall(*block) == pytest.approx(stall)


def test_vectors_across_two_lines_are_loaded_more_often():
    assert X86_64_V3.stall(10, 1) == pytest.approx(0.1)
    assert X86_64_V3.stall(10, 1, across=1.5) == pytest.approx(0.15)
    # Four weights a load: fewer than the multiply-adds, whatever the vectors cost.
    assert CORTEX_A72.stall(10, 1, across=1.5) == 0.0


@pytest.mark.parametrize(("size", "features"), [(112, 8), (56, 10), (28, 21)])
def test_slabs_have_a_block_that_does_not_wait(size, features):
    slab = winograd_pixels.choose_slab(size, size, features, features, 4, X86_64_V3)
    found = conv2d_pixels.register_blocks(features, slab.vectors, X86_64_V3)
    assert min(X86_64_V3.stall(*block, across=1.5) for block in found) == 0.0
    assert slab.waste(size, X86_64_V3.lanes) < 0.1


@pytest.mark.parametrize("size", [56, 28])
def test_slabs_of_pointwise_convolutions_too(size):
    slab = conv2d_pixels.choose_slab(size, size, 1, 1, 40, 84, X86_64_V3)
    found = conv2d_pixels.register_blocks(84, slab.vectors, X86_64_V3)
    assert min(X86_64_V3.stall(*block) for block in found) == 0.0


@pytest.mark.parametrize(
    ("machine", "outer", "block"),
    [(X86_64_V3, 6, (7, 1)), (X86_64_V4, 3, (7, 3)), (CORTEX_A72, 12, (7, 3))],
)
def test_blocks_of_tiles(machine, outer, block):
    assert winograd_tiles._block(49, outer, 3, machine) == block


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize(
    ("layout", "groups", "channels", "size"),
    [(PIXELS, 4, 10, 56), (PIXELS, 4, 21, 28), (CHANNELS, 4, 44, 14), (CHANNELS, 2, 93, 7)],
)
def test_sums_stay_in_registers(layout, groups, channels, size, tiles, monkeypatch):
    """LLVM kept some of ten sums of one vector on the stack, and waited for them."""
    if not tiles:
        monkeypatch.setattr(winograd_tiles, "_SHAPES", ())  # a direct convolution
    task, *_ = kernel(layout, groups, channels, channels, size, size)
    sums = [
        loop
        for loop in innermost_loops(assembly(task))
        if 3 * sum("vfmadd" in line for line in loop) > len(loop)  # not those of transforms
    ]
    assert sums
    assert [line for loop in sums for line in loop if re.search(r"\(%r[sb]p\)", line)] == []


@pytest.mark.parametrize(
    ("width", "steps"),
    [
        (7, [1, 4, 7]),
        (5, [1, 3, 5]),
        (11, [1, 3, 4, 6, 11]),
        (14, [1, 2, 3, 5, 7, 14]),
        (3, [1, 3]),
    ],
)
def test_a_row_is_cut_evenly_or_a_pixel_short(width, steps):
    assert conv2d_channels._row_blocks(width, X86_64_V3.lanes) == steps
    even = [step for step in steps if width % step == 0]
    assert conv2d_channels._row_blocks(width, X86_64_V4.lanes) == even


@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 5), (2, 11), (1, 7)])
@pytest.mark.parametrize("stored", [93, 60])
def test_blocks_that_are_a_pixel_short(height, width, stored, monkeypatch):
    monkeypatch.setattr(winograd_tiles, "_SHAPES", ())  # a direct convolution
    task, arrays, wanted = kernel(CHANNELS, 2, 93, stored, height, width)
    blocks = {knob.name: knob.choices for knob in task.space.knobs}["tile"]
    short = [tile for tile in blocks if width % (tile // 100 % 100)]
    assert short
    for tile in short:
        point = {**task.space.default, "tile": tile}
        found = run_point(task, point, [*arrays, np.zeros_like(wanted)])
        assert relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "family"),
    [(84, "conv2d_channels"), (256, "conv2d_channels"), (352, "elementwise+conv2d_channels")],
)
def test_many_maps_are_copied_before_channels_are_summed(channels, family):
    """A sum over channels of NCHW reads a line of each map; 352 lines leave L1 no room."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, channels, 7, 7)).astype("float32")
    weight = random.standard_normal((48, channels, 1, 1)).astype("float32")
    packed = conv2d_channels.pack(weight, 1, 7 * 7, X86_64_V3)
    source, stored = te.placeholder(x.shape, name="x"), te.placeholder(packed.shape, name="w")
    moved = te.compute((1, 7, 7, channels), lambda n, y, xx, c: source[n, c, y, xx], "T_transpose")
    result = conv2d_channels.conv2d(moved, stored, 48, (1, 1), (0, 0, 0, 0))
    mod = kernel_module(te.create_prim_func([source, stored, result]))
    space = space_for(mod, AVX2.to_tvm())
    assert space.kernel == family
    wanted = np.einsum("nchw,fcij->nhwf", x, weight)
    task = SimpleNamespace(mod=mod, space=space)
    found = run_point(task, space.default, [x, packed, np.zeros_like(wanted)])
    assert relative(found, wanted) < TOLERANCE
