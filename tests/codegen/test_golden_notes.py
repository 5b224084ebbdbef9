# SPDX-License-Identifier: Apache-2.0
"""A note where golden vectors would pass whatever the layers compute."""

import numpy as np
import pytest

from tvmattend.codegen.building import golden_notes


def golden(*outputs):
    return [((np.zeros(1),), (np.array(values),)) for values in outputs]


@pytest.mark.parametrize("second", [[1.0, -2.0], [1.0001, -2.0]])
def test_outputs_that_hardly_differ_are_told(second):
    (note,) = golden_notes(golden([1.0, -2.0], second))
    assert "proves little" in note


def test_outputs_that_differ_are_not():
    assert list(golden_notes(golden([1.0, -2.0], [1.01, -2.0]))) == []
    assert list(golden_notes(golden([0.0, 0.0], [0.0, 1.0]))) == []


def test_one_of_several_outputs_is_enough():
    both = [((), (np.ones(2), np.array([0.0, 1.0]))), ((), (np.ones(2), np.array([1.0, 1.0])))]
    assert list(golden_notes(both)) == []
