# SPDX-License-Identifier: Apache-2.0
"""The folder that `benchmarks/a72_validation.py --published` reads: any networks, refusals."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tvmattend.errors import InputError

HEAD = "network,input_whc,one_thread_ms,four_threads_ms\n"


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "benchmarks" / "a72_validation.py"
    spec = importlib.util.spec_from_file_location("a72_validation", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["a72_validation"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["a72_validation"]


def folder(place: Path, table: str, *networks: str) -> Path:
    (place / "published.csv").write_text(table)
    for network in networks:
        (place / f"{network}.param").write_text("7767517\n0 0\n")
    return place


def test_any_folder_is_read_and_a_time_may_be_missing(script, tmp_path):
    table = HEAD + "first,224x192x3,10.5,4\nsecond,32x32x1,2,\n"
    first, second = script.read_published(folder(tmp_path, table, "first", "second"))
    assert (first.shape, first.published) == ((224, 192, 3), {1: 0.0105, 4: 0.004})
    assert second.published == {1: 0.002}
    assert script.chosen([first, second], "second") == [second]
    with pytest.raises(InputError, match="has no third"):
        script.chosen([first, second], "first,third")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (HEAD, "names no network"),
        (HEAD + "first,224x224,1,1\n", "line 2 of .* cannot be understood"),
        (HEAD + "first,224x224x3,fast,1\n", "line 2 of .*fast"),
        (HEAD + "first,224x224x3,0,1\n", "line 2 of .*above zero"),
        (HEAD + "first,224x224x3,1,nan\n", "line 2 of .*above zero"),
        ("name,ms\nfirst,1\n", "cannot be understood: KeyError"),
        (HEAD + "first,224x224x3,1,1\nabsent,8x8x1,1,1\n", r"there is no .*absent\.param"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(script, tmp_path, table, reason):
    with pytest.raises(InputError, match=reason):
        script.read_published(folder(tmp_path, table, "first"))


def test_one_network_has_no_rank_and_int8_no_fp32_error(script, tmp_path):
    (only,) = script.read_published(folder(tmp_path, HEAD + "x_int8,8x8x1,2,1\n", "x_int8"))
    found = script.Fit(script.SHIPPED, (0.0021,), (0.0021,))
    result = script.report([only], 1, found, False)
    assert result["mape"] == pytest.approx(5.0)
    assert result["mape_fp32"] != result["mape_fp32"]
    assert result["spearman"] != result["spearman"]


def test_no_folder(script, tmp_path):
    with pytest.raises(InputError, match=r"no .*published\.csv"):
        script.read_published(tmp_path / "absent")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("a72_effects.py", "--published", "{0}/absent", "--traces", "{0}"), 17, "published.csv"),
        (("a72_effects.py", "--published", "{0}", "--traces", "{0}/absent"), 17, "first.trace"),
        (("a72_kernels.py", "{0}/absent"), 14, "no bundle"),
        (("ncnn_published.py", "{0}", "{0}/out"), 17, "benchmark/README.md"),
        (("a72_network.py", "--model", "nope", "--results", "{0}"), 4, "`nope`"),
    ],
)
def test_the_other_commands_refuse_in_one_line_as_well(tmp_path, words, code, reason):
    folder(tmp_path, HEAD + "first,32x32x1,1,1\n", "first")
    file, *options = (word.format(tmp_path) for word in words)
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    done = subprocess.run(
        [sys.executable, str(benchmarks / file), *options],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert reason in error
    assert hint.startswith("hint: ")


README = """
### Raspberry Pi 3
num_threads = 4
               first  min =    9.00  max =    9.00  avg =    9.00
### Raspberry Pi 4 Model B Broadcom BCM2711B0, Cortex-A72 (ARMv8) (1.8GHz x 4)
num_threads = 4
               first  min =    2.00  max =    3.00  avg =    2.50
              second  min =    4.00  max =    4.00  avg =    4.00
num_threads = 1
               first  min =    6.00  max =    8.00  avg =    7.00
              second  min =    9.00  max =    9.00  avg =    9.00
              absent  min =    1.00  max =    1.00  avg =    1.00
### Raspberry Pi 5
num_threads = 1
               first  min =    1.00  max =    1.00  avg =    1.00
"""


def test_a_folder_is_made_of_what_ncnn_publishes_less_what_was_fitted_on(script, tmp_path):
    home, out, fitted = (tmp_path / name for name in ("ncnn/benchmark", "out", "fitted"))
    (home / "models").mkdir(parents=True)
    fitted.mkdir()
    (home / "README.md").write_text(README)
    calls = [f'benchmark("{n}", ncnn::Mat(32, 16, 3), opt);' for n in ("first", "second", "absent")]
    (home / "benchncnn.cpp").write_text("\n".join(calls))
    for name in ("first", "second"):
        (home / "models" / f"{name}.param").write_text("7767517\n0 0\n")
    (fitted / "second.param").write_text("")
    command = Path(__file__).parents[2] / "benchmarks" / "ncnn_published.py"
    words = [sys.executable, str(command), str(home.parent), str(out), "--without", str(fitted)]
    subprocess.run(words, check=True)
    (network,) = script.read_published(out)
    assert (network.name, network.shape) == ("first", (32, 16, 3))
    assert network.published == {1: 0.007, 4: 0.0025}
