# SPDX-License-Identifier: Apache-2.0
"""The fit finds numbers that made the data, stays in range, and leaves one out."""

import struct

import pytest

from tvmattend.machine.fitting import fit, kendall, mean_error, spearman
from tvmattend.machine.parameters import FITTED, SHIPPED
from tvmattend.machine.trace import Trace

NAMES = ("l2_latency", "dram_bytes_per_ns")
NETWORKS = [(5.0, 30.0, 8.0), (9.0, 3.0, 20.0), (2.0, 12.0, 1.0), (20.0, 9.0, 3.0), (4.0, 1.0, 9.0)]


def made_up(parameters, places):
    return [
        compute + 0.03 * misses * parameters.l2_latency + lines / parameters.dram_bytes_per_ns
        for compute, misses, lines in (NETWORKS[place] for place in places)
    ]


def test_it_comes_near_the_numbers_that_made_the_data():
    truth = SHIPPED.but(l2_latency=31.0, dram_bytes_per_ns=3.6)
    published = made_up(truth, range(5))
    found = fit(made_up, published, SHIPPED, NAMES)
    # The literature's values pull a little.
    assert found.parameters.l2_latency == pytest.approx(31.0, rel=0.06)
    assert found.parameters.dram_bytes_per_ns == pytest.approx(3.6, rel=0.06)
    assert mean_error(found.estimated, published) < 0.01
    assert mean_error(found.left_out, published) < 0.03


def test_numbers_stay_in_their_plausible_ranges():
    published = [20 * s for s in made_up(SHIPPED, range(5))]
    found = fit(made_up, published, SHIPPED, NAMES).parameters
    for name in NAMES:
        assert FITTED[name].low * 0.999 <= getattr(found, name) <= FITTED[name].high * 1.001


def test_what_is_not_fitted_keeps_its_value():
    start = SHIPPED.but(mispredict=11.0)
    assert fit(made_up, made_up(start, range(5)), start, NAMES).parameters.mispredict == 11.0


def test_ranks():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [40, 30, 20, 10]) == pytest.approx(-1.0)
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


def test_thinning_keeps_every_thread():
    def window(thread: int) -> bytes:
        return struct.pack("<4I", 0xFFFFFFFF, thread, 1, 0x80000000)

    samples = b"".join(window(number % 4) for number in range(4000))
    trace = Trace({}, samples, (), 0, True)
    thin = trace.thinned(len(samples) // 4)
    assert thin.samples == trace.thinned(len(samples) // 4).samples
    size = len(thin.samples)
    kept = [struct.unpack_from("<I", thin.samples, at + 4)[0] for at in range(0, size, 16)]
    for thread in range(4):
        assert 200 < kept.count(thread) < 300
    assert trace.thinned(2 * len(samples)).samples == samples
