# SPDX-License-Identifier: Apache-2.0
"""`tvmattend run`: what it prints, what it writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sample_bundles import INPUT, LABELS, RECIPE, reference, rewrite_manifest, two_by_two

from tvmattend.bundle import write_bundle
from tvmattend.cli.run import _top, command
from tvmattend.errors import InputError, StorageError
from tvmattend.runtime import load
from tvmattend.runtime.network import BundleMismatchError, DeviceError, preprocess


def run(*arguments: Any, fails: type[Exception] | None = None) -> Result:
    """Call the command as `main` does; its errors are exceptions here."""
    result = CliRunner().invoke(command, [str(word) for word in arguments])
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
    elif result.exception is not None:
        raise result.exception
    return result


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(8).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photograph_is_classified_and_timed(sound_bundle: Path, photograph: Path) -> None:
    result = run(sound_bundle, "--input", photograph, "--top", 3, "--repeat", 4)
    *named, times = result.stdout.splitlines()
    logits = reference(preprocess(photograph, vars(RECIPE)))[0]
    assert [line.split()[1] for line in named] == [LABELS[i] for i in np.argsort(-logits)[:3]]
    assert times.startswith("median ")
    assert "4 runs, 1 thread, here" in times
    assert not result.stderr


def test_json_is_one_object_with_the_same(sound_bundle: Path, photograph: Path) -> None:
    result = run(sound_bundle, "--input", photograph, "--json")
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert len(report["top"][0]) == 5
    assert report["top"][0][0]["label"] in LABELS
    seconds = report["seconds"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert (report["repeat"], report["warmup"], report["threads"]) == (10, 2, 1)
    assert report["board"] is None
    assert report["outputs"][0]["shape"] == [1, 5]


def test_an_array_goes_in_and_an_array_comes_out(sound_bundle: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal(INPUT.shape).astype("float32")
    np.save(tmp_path / "x.npy", x)
    run(sound_bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), reference(x), rtol=1e-4, atol=1e-5)


def test_noise_is_the_same_every_time(sound_bundle: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(sound_bundle, "--input", "random", "--output", tmp_path / f"{name}.npy")
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    np.testing.assert_array_equal(one, two)
    assert np.abs(one).max() > 0


def test_several_inputs_come_by_name(tmp_path: Path) -> None:
    pair = write_bundle(tmp_path / "pair", two_by_two(tmp_path))
    a, b = np.ones((2, 3), "float32"), np.full((2, 3), 2, "float32")
    np.savez(tmp_path / "x.npz", in1=b, in0=a)
    result = run(pair, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert "out0: float32[2, 3], mean 3" in result.stdout
    with np.load(tmp_path / "y.npz") as y:
        np.testing.assert_array_equal(y["out1"], a - b)
    np.savez(tmp_path / "half.npz", in0=a)
    result = run(pair, "--input", tmp_path / "half.npz", fails=InputError)
    assert "no array `in1`" in str(result.exception)
    run(pair, "--output", tmp_path / "y.npy", fails=InputError)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_name_no_class(
    value: float, sound_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = np.zeros((1, 5), "float32")
    assert _top(load(sound_bundle), (logits,), 5) is not None
    logits[0, 2] = value
    assert _top(load(sound_bundle), (logits,), 5) is None
    assert "NaN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--input", "nothing.jpg"], InputError),
        (["--input", "."], InputError),
        (["--output", "y.txt"], InputError),
        (["--output", "no/such/directory/y.npy"], StorageError),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    arguments: list[str], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvmattend.cli.run.open_bundle", None)
    result = run("bundle", *arguments, fails=error)
    assert getattr(result.exception, "hint", "")


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_a_broken_array_file_is_an_input_error(
    content: bytes, sound_bundle: Path, tmp_path: Path
) -> None:
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(content)
        run(sound_bundle, "--input", tmp_path / name, fails=InputError)


def test_a_damaged_archive_is_an_input_error(sound_bundle: Path, tmp_path: Path) -> None:
    """Of every byte, since zipfile, zlib and numpy each have errors of their own."""
    np.savez_compressed(tmp_path / "sound.npz", **{load(sound_bundle).inputs[0].name: np.ones(9)})
    sound = (tmp_path / "sound.npz").read_bytes()
    for place in range(0, len(sound), 3):
        damaged = bytearray(sound)
        damaged[place] ^= 0xFF
        (tmp_path / "x.npz").write_bytes(damaged)
        result = run(sound_bundle, "--input", tmp_path / "x.npz", fails=Exception)
        assert getattr(result.exception, "exit_code", 1) == 17, result.exception


def test_pickles_are_not_loaded(sound_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    run(sound_bundle, "--input", tmp_path / "x.npy", fails=InputError)


@pytest.mark.parametrize("option", ["--repeat", "--warmup"])
def test_more_runs_than_anyone_waits_for_are_out_of_range(sound_bundle: Path, option: str) -> None:
    result = CliRunner().invoke(command, [str(sound_bundle), option, str(10**20)])
    assert result.exit_code == 2


def test_a_bundle_for_a_board_points_to_rpc(bundle: Path) -> None:
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4}
    rewrite_manifest(bundle, target=target)
    result = run(bundle, fails=BundleMismatchError)
    assert "--rpc" in result.exception.hint  # type: ignore[union-attr]
    assert "--emulate cortex-a72" in result.exception.hint  # type: ignore[union-attr]


def test_on_a_board_over_rpc(sound_bundle: Path, host_board: str, tmp_path: Path) -> None:
    common = ["--output", tmp_path / "y.npy", "--repeat", 3]
    result = run(sound_bundle, "--rpc", host_board, "--json", *common)
    report = json.loads(result.stdout)
    assert report["board"]["endpoint"] == host_board
    net = load(sound_bundle)
    x = np.random.default_rng(0).standard_normal(INPUT.shape).astype("float32")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.asarray(net(x)), rtol=1e-5)
    assert f"on {host_board}" in run(sound_bundle, "--rpc", host_board).stdout


def test_the_command_is_a_command() -> None:
    assert isinstance(command, click.Command)
    assert "--rpc" in run("--help").stdout


@pytest.mark.parametrize("name", ["y.npy", "y.npz"])
def test_a_full_disk_leaves_what_was_there(
    name: str, sound_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(stream: Any, *_: Any, **__: Any) -> None:
        stream.write(b"half")
        raise OSError("160 requested and 4 written")  # as numpy says it

    (tmp_path / name).write_bytes(b"before")
    monkeypatch.setattr("numpy.save" if name.endswith("y") else "numpy.savez", half)
    result = run(sound_bundle, "--output", tmp_path / name, fails=StorageError)
    assert "160 requested and 4 written" in str(result.exception)
    assert "--output" in result.exception.hint  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"before"


def test_a_photograph_that_is_none_has_a_hint(sound_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("no photograph")
    result = run(sound_bundle, "--input", tmp_path / "photo.jpg", fails=DeviceError)
    assert result.exception.exit_code == InputError.exit_code  # type: ignore[union-attr]
    assert "photo.jpg does not open as an image" in str(result.exception)
    assert "JPEG" in result.exception.hint  # type: ignore[union-attr]
