# SPDX-License-Identifier: Apache-2.0
"""A bundle in this process: results, refusals, threads, and what a rebuilt bundle gives."""

import ctypes
import os
import platform
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from sample_bundles import INPUT, LABELS, RECIPE, reference, rehash, rewrite_manifest

from tvmattend.bundle import BundleContents, write_bundle
from tvmattend.runtime import Network, contents, executors, load, network, process
from tvmattend.runtime.network import InputError, TensorSpec
from tvmattend.runtime.tensors import checked
from tvmattend.target import TargetSpec


@pytest.fixture(scope="session")
def net(sound_bundle: Path) -> Network:
    return load(sound_bundle)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal(INPUT.shape).astype("float32")


def test_the_outputs_are_those_of_the_reference(net: Network, x: np.ndarray) -> None:
    y = net(x)
    assert isinstance(y, np.ndarray)
    assert (y.shape, y.dtype) == ((1, 5), np.float32)
    assert network.relative_error(y, reference(x)) < 1e-6
    assert not np.array_equal(net(-x), y)


def test_an_output_is_the_callers_own(net: Network, x: np.ndarray) -> None:
    first = net(x)
    assert isinstance(first, np.ndarray)
    kept = first.copy()
    net(2 * x)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


def test_an_output_that_is_an_input_is_a_copy(tmp_path: Path) -> None:
    from sample_bundles import echo

    net = load(write_bundle(tmp_path / "echo", echo(tmp_path)))
    ones = np.ones((2, 3), "float32")
    first, _ = net(ones)
    net(2 * ones)
    np.testing.assert_array_equal(first, ones)


def test_the_specs_are_the_manifests(net: Network) -> None:
    assert net.inputs == (INPUT,)
    assert net.outputs[0].name == "logits"
    assert net.manifest["model"] == "sample"


@pytest.mark.parametrize("offset", [4, 8, 16, 20, 32])
def test_an_array_at_any_address_will_do(net: Network, x: np.ndarray, offset: int) -> None:
    """TVM's kernels load vectors from multiples of 64 bytes; numpy promises 16. It segfaults."""
    room = np.zeros(x.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    moved = room[start : start + x.nbytes].view("float32").reshape(x.shape)
    moved[:] = x
    np.testing.assert_array_equal(net(moved), net(x))


def test_views_and_read_only_arrays_will_do(net: Network, x: np.ndarray) -> None:
    y = net(x)
    strided = np.zeros((1, 3, 32, 32), "float32")[:, :, ::2, ::2]
    strided[:] = x
    np.testing.assert_array_equal(net(strided), y)
    transposed = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(net(transposed), y)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(net(frozen), y)


Make = Callable[[np.ndarray], Any]
WRONG: dict[str, tuple[Make, str]] = {
    "nhwc": (lambda x: x.transpose(0, 2, 3, 1), r"NHWC: pass x\.transpose\(0, 3, 1, 2\)"),
    "hwc": (lambda x: x[0].transpose(1, 2, 0), r"HWC: pass x\.transpose\(2, 0, 1\)\[None\]"),
    "chw": (lambda x: x[0], r"batch axis is missing: pass x\[None\]"),
    "larger": (lambda _: np.zeros((1, 3, 17, 16), "float32"), "one shape"),
    "scalar": (lambda _: np.float32(3) * np.ones(()), "numpy|one shape"),
    "double": (lambda x: x.astype("float64"), r'astype\("float32"\)'),
    "half": (lambda x: x.astype("float16"), r'astype\("float32"\)'),
    "other endian": (lambda x: x.astype(">f4"), r'astype\("float32"\)'),
    "image": (lambda x: x.astype("uint8"), "classify"),
    "an image's pixels": (lambda x: x[0].transpose(1, 2, 0).astype("uint8"), "classify"),
    "list": (lambda x: x.tolist(), "numpy array"),
    "objects": (lambda x: x.astype(object), "astype"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_input_is_refused_with_what_to_do(net: Network, x: np.ndarray, kind: str) -> None:
    make, hint = WRONG[kind]
    with pytest.raises(network.InputError) as caught:
        net(make(x))
    assert re.search(hint, caught.value.hint)
    assert caught.value.exit_code == 17
    assert "`image` is float32[1, 3, 16, 16], NCHW" in str(caught.value)


def test_the_advice_for_a_layout_works(net: Network, x: np.ndarray) -> None:
    np.testing.assert_array_equal(net(x.transpose(0, 2, 3, 1).transpose(0, 3, 1, 2)), net(x))
    np.testing.assert_array_equal(net(x[0].transpose(1, 2, 0).transpose(2, 0, 1)[None]), net(x))


def test_a_wrong_number_of_inputs_is_refused(net: Network, x: np.ndarray) -> None:
    with pytest.raises(network.InputError, match="2 inputs given"):
        net(x, x)
    with pytest.raises(network.InputError, match="0 inputs given"):
        net()


def test_two_inputs_and_two_outputs(tmp_path: Path) -> None:
    from sample_bundles import two_by_two

    contents = two_by_two(tmp_path)
    net = load(write_bundle(tmp_path / "pair", contents))
    assert net.self_test() == [0.0, 0.0]
    (a, b), _ = contents.golden[0]
    total, difference = net(a, b)
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(difference, a - b)
    with pytest.raises(network.InputError, match="does not say what an image becomes"):
        net.classify(np.zeros((8, 8, 3), np.uint8))


def test_classify_ranks_and_names(net: Network) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    logits = reference(network.preprocess(image, vars(RECIPE)))[0].astype("float64")
    shares = np.exp(logits) / np.exp(logits).sum()
    ranked = net.classify(image, top=3)
    assert [p.class_index for p in ranked] == np.argsort(-logits)[:3].tolist()
    assert [p.label for p in ranked] == [LABELS[p.class_index] for p in ranked]
    np.testing.assert_allclose(
        [p.probability for p in ranked], np.sort(shares)[::-1][:3], rtol=1e-4
    )
    assert len(net.classify(image, top=99)) == 5


def test_without_labels_a_class_is_its_number(bundle: Path) -> None:
    rewrite_manifest(bundle, labels=None)
    assert load(bundle).classify(np.zeros((20, 20, 3), np.uint8), top=1)[0].label is None


def test_one_logit_is_a_yes_or_no(net: Network) -> None:
    assert net.ranked(np.array([[0.0]]))[0].probability == 0.5
    assert net.ranked(np.array([[1000.0]]))[0].probability == 1.0
    assert net.ranked(np.array([[-1000.0]]))[0].probability == 0.0


def test_large_logits_do_not_overflow(net: Network) -> None:
    first, second = net.ranked(np.array([[1e5, 1e5 - 1]]))
    assert (first.class_index, second.class_index) == (0, 1)
    assert first.probability + second.probability == pytest.approx(1)


def test_a_network_without_a_recipe_takes_no_images(bundle: Path) -> None:
    rewrite_manifest(bundle, preprocessing=None)
    with pytest.raises(network.InputError, match="does not say what an image becomes"):
        load(bundle).classify(np.zeros((20, 20, 3), np.uint8))


def test_self_test_gives_an_error_for_each_vector(net: Network) -> None:
    errors = net.self_test()
    assert len(errors) == 3
    assert 0 < max(errors) < 1e-6


@pytest.mark.parametrize("fault", [1e-3, float("nan"), float("inf")])
def test_self_test_fails_when_the_reference_was_changed_consistently(
    bundle: Path, fault: float
) -> None:
    with np.load(bundle / "golden.npz") as archive:
        arrays = dict(archive)
    arrays["output0"][1] += np.float32(fault) * np.abs(arrays["output0"][1]).max()
    np.savez(bundle / "golden.npz", **arrays)
    rehash(bundle)
    net = load(bundle)
    with np.errstate(invalid="ignore"), pytest.raises(network.ValidationError) as caught:
        net.self_test()
    assert caught.value.exit_code == 16
    assert "vector 1" in str(caught.value)
    errors = net.golden_errors()
    assert max(errors[0], errors[2]) < 1e-6 < errors[1]


def test_the_tolerance_is_the_manifests(bundle: Path) -> None:
    rewrite_manifest(bundle, tolerance=1e-9)
    with pytest.raises(network.ValidationError, match="1e-09"):
        load(bundle).self_test()


@pytest.mark.parametrize(
    ("result", "wanted", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], float("inf")),
        ([float("nan"), 1.0], [0.0, 1.0], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
    ],
)
def test_relative_error(result: list[float], wanted: list[float], error: float) -> None:
    got = network.relative_error(np.array(result, "float32"), np.array(wanted, "float32"))
    assert got == error or got > 1e300


def test_time_gives_one_number_a_run(net: Network, x: np.ndarray) -> None:
    seconds = net.time(x, repeat=7, warmup=0)
    assert len(seconds) == 7
    assert all(0 < second < 1 for second in seconds)
    with pytest.raises(network.InputError):
        net.time(x[0])


def test_many_python_threads_get_their_own_results(net: Network) -> None:
    random = np.random.default_rng(9)
    xs = [random.standard_normal(INPUT.shape).astype("float32") for _ in range(8)]
    alone = [np.asarray(net(x)) for x in xs]
    mixed: list[int] = []

    def work(number: int) -> None:
        right = [np.array_equal(np.asarray(net(xs[number])), alone[number]) for _ in range(500)]
        mixed.extend([number] * right.count(False))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not mixed


CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("threads", ["2", 0, -1, CPUS + 1, 1.0, True])
def test_threads_are_a_count_that_there_is(sound_bundle: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="threads=") as caught:
        load(sound_bundle, threads=threads)
    assert caught.value.hint == f"give a whole number from 1 to {CPUS}"


def test_counts_are_also_numpys(sound_bundle: Path, x: np.ndarray) -> None:
    net = load(sound_bundle, threads=np.int64(1))  # type: ignore[arg-type]
    assert type(net.threads) is int
    assert len(net.ranked(net(x), np.int64(2))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("top", [0, -1, 2.0, "5"])
def test_the_likeliest_classes_are_a_count(net: Network, top: Any) -> None:
    with pytest.raises(InputError, match="top="):
        net.ranked(np.zeros(3), top)


def test_an_input_without_axes_is_told_like_others() -> None:
    with pytest.raises(InputError, match=r"input `s` is float32\[\].*got float32\[3\]"):
        checked(TensorSpec("s", (), "float32", ""), np.zeros(3, "float32"))


@pytest.mark.parametrize("threads", sorted({1, CPUS}))
def test_the_pool_has_the_size_asked_for_and_the_caller_stays_unbound(
    sound_bundle: Path, threads: int
) -> None:
    before = os.sched_getaffinity(0)
    net = load(sound_bundle, threads=threads)
    assert net.threads == threads
    assert os.sched_getaffinity(0) == before
    used = executors.kernel_thread(threads).submit(
        tvm_ffi.get_global_func("runtime.NumThreads")
    ).result()  # fmt: skip
    assert used == threads
    # One worker a processor may not be bound to one: the application may keep that one busy.
    places = executors.kernel_thread(threads).submit(os.sched_getaffinity, 0).result()
    assert len(places) >= threads
    if not Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").exists():
        assert places == before


def test_a_bundle_for_more_threads_takes_what_is_there(bundle: Path) -> None:
    rewrite_manifest(bundle, threads=1000)
    assert load(bundle).threads == CPUS


def test_after_a_fork_it_is_an_error_and_not_a_hang(net: Network, x: np.ndarray) -> None:
    executor = net._executor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(network.DeviceError, match="fork"):
            executor.run([x])


def test_a_bundle_that_was_built_again_gives_the_new_network(
    contents: BundleContents, tmp_path: Path, x: np.ndarray
) -> None:
    """The loader goes by a library's name: without care it gives the old code for the new file."""
    from sample_bundles import two_by_two

    place = write_bundle(tmp_path / "out", contents)
    old = load(place)
    write_bundle(place, two_by_two(tmp_path), force=True)
    new = load(place)
    assert new.self_test() == [0.0, 0.0]
    assert network.relative_error(np.asarray(old(x)), reference(x)) < 1e-6
    write_bundle(place, contents, force=True)
    assert network.relative_error(np.asarray(load(place)(x)), reference(x)) < 1e-6


# --- Bundles for another machine or runtime: refused before anything is loaded ---------------


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        pytest.fail(f"something was loaded: {args}")

    monkeypatch.setattr(ctypes, "CDLL", never)
    monkeypatch.setattr(tvm_ffi, "load_module", never)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("machine", ["aarch64", "arm64", "armv7l", "riscv64"])
def test_another_architecture(
    sound_bundle: Path, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(network.BundleMismatchError, match="the bundle is for x86_64") as caught:
        load(sound_bundle)
    assert caught.value.exit_code == 15
    assert "--rpc" in caught.value.hint


@pytest.mark.usefixtures("nothing_loads")
def test_a_bundle_for_a_board_says_how_to_emulate_one(bundle: Path) -> None:
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4}
    rewrite_manifest(bundle, target=target)
    with pytest.raises(network.BundleMismatchError) as caught:
        load(bundle)
    assert "--emulate cortex-a72" in caught.value.hint


@pytest.mark.usefixtures("nothing_loads")
def test_a_python_of_32_bits_on_a_kernel_of_64(
    sound_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    with pytest.raises(network.BundleMismatchError, match="32-bit Python"):
        load(sound_bundle)


AVX2 = "flags\t\t: fpu ssse3 sse4_2 popcnt avx avx2 bmi1 bmi2 f16c fma movbe\n"


@pytest.mark.parametrize(
    ("triple", "cpu", "cpuinfo", "lacks"),
    [
        ("x86_64-linux-gnu", "x86-64-v4", AVX2, "avx512f"),
        ("x86_64-linux-gnu", "sapphirerapids", AVX2, "amx_tile, avx512_bf16"),
        ("x86_64-linux-gnu", "haswell", AVX2.replace(" bmi2", ""), "lacks bmi2"),
        ("x86_64-linux-gnu", "x86-64-v3", AVX2, ""),
        ("aarch64-linux-gnu", "cortex-a76", "Features\t: fp asimd crc32\n", "asimddp"),
        ("aarch64-linux-gnu", "cortex-a72", "Features\t: fp asimd crc32\n", ""),
        # qemu-user shows the file of the machine below: that says nothing about the board.
        ("aarch64-linux-gnu", "cortex-a76", "flags\t\t: fpu avx2\n", ""),
    ],
)
def test_a_processor_without_the_instructions(
    triple: str, cpu: str, cpuinfo: str, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TargetSpec(triple, cpu)
    flags = list(spec.cpu_flags)
    monkeypatch.setattr(platform, "machine", lambda: spec.arch)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    if not lacks:
        network.check_machine(spec.to_json(), flags)
        return
    with pytest.raises(network.BundleMismatchError, match=lacks):
        network.check_machine(spec.to_json(), flags)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("installed", ["0.1.15", "0.2.0", "1.1.14"])
def test_another_version_of_the_ffi_names_both(
    sound_bundle: Path, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tvm_ffi, "__version__", installed)
    with pytest.raises(network.BundleMismatchError) as caught:
        load(sound_bundle)
    assert installed in str(caught.value)
    assert "0.1.14" in str(caught.value)
    assert "pip install apache-tvm-ffi==0.1.14" in caught.value.hint


def test_another_post_release_of_the_ffi_is_the_same_library(
    sound_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tvm_ffi, "__version__", "0.1.14.post9")
    assert load(sound_bundle).self_test()


@pytest.mark.usefixtures("nothing_loads")
def test_without_the_ffi_the_hint_is_how_to_install_it(
    sound_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)
    with pytest.raises(network.ToolMissingError) as caught:
        load(sound_bundle)
    assert caught.value.exit_code == 10
    assert "pip install apache-tvm-ffi==" in caught.value.hint


@pytest.mark.usefixtures("nothing_loads")
def test_a_process_that_has_another_tvm_is_left_alone(
    bundle: Path, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    del net  # it has brought the runtime into this process
    library = bundle / "lib" / "libtvm_runtime.so"
    library.write_bytes(library.read_bytes() + b"another build")
    rehash(bundle)
    monkeypatch.setattr(process, "_loaded", {})
    monkeypatch.setitem(sys.modules, "tvm", None)
    with pytest.raises(network.BundleMismatchError, match="this process has"):
        load(bundle)


def test_the_runtime_of_an_imported_tvm_serves(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tvm

    monkeypatch.setattr(process, "_loaded", {})
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert load(bundle).self_test()
    assert tvm.__version__ == load(bundle).manifest["versions"]["tvm"]


def test_a_library_with_another_interface_says_both_versions(
    signed_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents.sibling("standalone"), "_ABI", 2)
    with pytest.raises(network.BundleMismatchError, match="has ABI 1, this file knows 2"):
        load(signed_tiny / "standalone")
