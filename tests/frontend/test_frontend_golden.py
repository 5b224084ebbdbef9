# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: what is drawn, and networks that do not take it."""

from pathlib import Path

import numpy as np
import pytest

from tvmattend.codegen.building import build
from tvmattend.errors import ModelError
from tvmattend.frontend import import_model
from tvmattend.frontend.golden import golden_vectors
from tvmattend.target import parse_target


def test_golden_vectors_are_the_references() -> None:
    model = import_model("attendnext_tiny")
    pairs = golden_vectors(model, 2)
    assert len(pairs) == 2
    for inputs, outputs in pairs:
        assert [array.shape for array in outputs] == [(1, 10)]
        np.testing.assert_array_equal(outputs[0], model.reference(inputs)[0])


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("log_of_zero", "`log` of `sample_nets_log_of_zero` is not finite", "clamp"),
        (
            "small_table",
            r"drawn inputs \(torch .*\): IndexError: .*sample_nets\.py:\d+",
            "negative too",
        ),
    ],
)
def test_networks_that_do_not_take_them_are_refused_before_the_work(
    name: str, message: str, hint: str, tmp_path: Path
) -> None:
    steps: list[str] = []
    with pytest.raises(ModelError, match=message) as caught:
        build(
            f"sample_nets:{name}",
            parse_target("host"),
            output=tmp_path / "bundle",
            observer=steps.append,
        )
    assert hint in caught.value.hint
    assert steps == [f"importing sample_nets:{name}"]
    assert not (tmp_path / "bundle").exists()
