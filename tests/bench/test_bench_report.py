# SPDX-License-Identifier: Apache-2.0
"""The JSON that scripts read, and the tables that people read."""

import json
from typing import Any

import pytest

from tvmattend.bench.host import describe_machine
from tvmattend.bench.report import Absent, Comparison, Result
from tvmattend.bench.timing import Timing

ABSENT = (
    Absent("ncnn", "missing", "pip install ncnn pnnx"),
    Absent("onnxruntime", "wrong", "its output is off", "1.31", 0.5),
)


def result(name: str, seconds: float, peer: bool = True) -> Result:
    return Result(name, "1.0", Timing(((seconds, seconds), (seconds, 2 * seconds))), 1e-6, peer)


def comparison(*results: Result, **changed: Any) -> Comparison:
    fields: dict[str, Any] = {
        "model": "attendnext",
        "threads": 2,
        "machine": describe_machine([0]),
        "results": results,
        "absent": ABSENT,
        "reference": "torch 2.13",
        "rounds": 2,
        "others": 0.01,
    }
    return Comparison(**{**fields, **changed})


@pytest.fixture
def ordinary() -> Comparison:
    return comparison(
        result("tvmattend", 0.004, peer=False),
        result("openvino", 0.006),
        result("torch", 0.012),
        result("tvm-default", 0.001, peer=False),
    )


def test_json_has_what_was_promised(ordinary: Comparison) -> None:
    data = json.loads(json.dumps(ordinary.to_json()))
    assert {"model", "threads", "machine", "results", "fastest_peer", "ratio"} <= set(data)
    assert (data["model"], data["threads"]) == ("attendnext", 2)
    for entry in data["results"]:
        promised = {"runtime", "version", "median_ms", "min_ms", "max_ms", "max_rel_error"}
        assert promised <= set(entry)
        assert entry["min_ms"] <= entry["median_ms"] <= entry["max_ms"]
    assert data["results"][0]["median_ms"] == 4.0
    assert data["results"][0]["max_ms"] == 8.0


def test_ratio_leaves_tvm_itself_out(ordinary: Comparison) -> None:
    data = ordinary.to_json()
    assert data["fastest_peer"] == "openvino"
    assert data["ratio"] == 1.5


def test_wrong_and_missing_ones_are_not_among_the_results(ordinary: Comparison) -> None:
    data = ordinary.to_json()
    assert {"ncnn", "onnxruntime"}.isdisjoint(entry["runtime"] for entry in data["results"])
    states = {entry["runtime"]: entry["state"] for entry in data["not_timed"]}
    assert states == {"ncnn": "missing", "onnxruntime": "wrong"}


def test_table_names_the_missing_one_with_its_install_line(ordinary: Comparison) -> None:
    text = "\n".join(ordinary.lines())
    assert "ncnn: missing: pip install ncnn pnnx" in text
    assert "tvmattend is 1.50x its speed" in text


def test_markdown_is_a_table(ordinary: Comparison) -> None:
    rows = [line for line in ordinary.markdown() if line.startswith("|")]
    assert len(rows) == 2 + len(ordinary.results)
    assert len({row.count("|") for row in rows}) == 1


def test_no_peer() -> None:
    alone = comparison(result("tvmattend", 0.004, peer=False))
    data = alone.to_json()
    assert data["fastest_peer"] is None
    assert data["ratio"] is None
    assert alone.lines()[-1] == "no peer was timed"


@pytest.mark.parametrize(("others", "noted"), [(0.01, False), (0.5, True), (None, False)])
def test_busy_machine_is_noted(others: float | None, noted: bool) -> None:
    one = comparison(result("tvmattend", 0.004, peer=False), result("torch", 0.1), others=others)
    assert any("quiet machine" in note for note in one.notes()) is noted


def test_says_how_ours_was_built() -> None:
    built = {"measured": 8, "estimated": 0, "default": 2}
    found = comparison(result("tvmattend", 0.004, peer=False), records=built, trials=400)
    assert found.lines()[-1] == found.markdown()[-1]
    assert found.lines()[-1] == "schedules of tvmattend's kernels: 8 measured, 2 default"
    assert found.to_json()["records"] == built
    assert found.to_json()["trials"] == 400
