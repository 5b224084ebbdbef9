# SPDX-License-Identifier: Apache-2.0
"""The library on this machine: its results, its promises, and what it answers to misuse."""

import ctypes
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from c_networks import Built, build, run

from tvmattend.codegen.compile import compile_module, export
from tvmattend.errors import CompileError, ToolMissingError
from tvmattend.frontend import ImportedModel
from tvmattend.runtime.network import relative_error
from tvmattend.runtime.standalone import Library, LibraryError
from tvmattend.standalone import elf, emit
from tvmattend.target import host_target


@pytest.fixture(scope="session")
def vm(tiny: Built, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The same scheduled module in TVM's virtual machine; its runtime is in this process then."""
    import tvm
    from tvm import relax

    library = tmp_path_factory.mktemp("vm") / "model.so"
    export(compile_module(tiny.scheduled, tiny.target), library, tiny.target)
    return relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())


@pytest.mark.parametrize("threads", [1, 2, 3, 4, np.int64(7)])
def test_it_computes_what_the_vm_computes_bit_for_bit(
    tiny: Built, vm: object, threads: int
) -> None:
    import tvm

    net = Library(tiny.files.shared, threads)
    for seed in range(3):
        ((x,),) = tiny.imported.sample_inputs(1, seed)
        expected = vm["main"](tvm.runtime.tensor(x)).numpy()  # type: ignore[index]
        for _ in range(5):
            (y,) = net.run([x])
            assert np.array_equal(y, expected)
        assert relative_error(y, tiny.imported.reference([x])[0]) < 1e-4
    net.close()


def test_the_door_for_rpc_tells_what_each_step_took(tiny: Built) -> None:
    import tvm

    net = Library(tiny.files.shared, 2)
    ((x,),) = tiny.imported.sample_inputs(1)
    (expected,) = net.run([x])
    door = tvm.runtime.load_module(str(tiny.files.shared)).get_function("network_rpc")
    y = tvm.runtime.tensor(np.zeros_like(expected))
    report = tvm.runtime.tensor(np.full(4096, 255, "uint8"))
    assert int(door(2, tvm.runtime.tensor(x), y, report)) == 0
    assert np.array_equal(y.numpy(), expected)
    lines = bytes(report.numpy()).split(b"\0")[0].decode().splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in net.profile([x])]
    assert all(0 <= int(line.split()[1]) < 10**9 for line in lines)
    # What has no room for all of it is refused, and written to within its bounds.
    short = tvm.runtime.tensor(np.full(40, 255, "uint8"))
    assert int(door(2, tvm.runtime.tensor(x), y, short)) == 100
    assert int(door(2, tvm.runtime.tensor(x), y, report, report)) == 2


def test_the_program_in_c_gets_the_same_result(tiny: Built, driver: Path, tmp_path: Path) -> None:
    x, path = tiny.inputs(tmp_path)
    (expected,) = Library(tiny.files.shared, 1).run([x])
    for threads in (1, 4):
        run([driver, "run", path, tmp_path / "out.bin", threads])
        found = np.fromfile(tmp_path / "out.bin", "float32").reshape(expected.shape)
        assert np.array_equal(found, expected)


def test_the_library_shows_its_interface_and_needs_the_system_only(tiny: Built) -> None:
    header = tiny.files.header.read_text()
    declared = set(re.findall(r"NETWORK_API [^;]*?\b(network_\w+)\(", header))
    assert len(declared) == 10
    visible = elf.symbols(tiny.files.shared, dynamic=True).visible
    assert visible == declared | {"__tvm_ffi_network_rpc"}
    listed = run(["readelf", "-d", tiny.files.shared])
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", listed))
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    assert set(tiny.files.needed) == needed
    assert "SONAME" in listed
    assert "TEXTREL" not in listed
    names = run(["readelf", "-sW", tiny.files.shared])
    assert re.search(r"LOCAL .* network_kernel_\w*conv", names), "profilers see the kernels"


def test_the_static_library_hides_everything_but_its_interface(tiny: Built) -> None:
    symbols = elf.symbols(tiny.sources / "libnetwork.o")
    assert {name for name in symbols.visible if not name.startswith("network_")} == set()
    assert not any("kernel" in name or "weights" in name for name in symbols.visible)
    assert not any(name.startswith(("TVM", "__TVM", "_Z")) for name in symbols.undefined)


def test_it_is_small_and_its_weights_are_read_only_data(tiny: Built) -> None:
    size = tiny.files.shared.stat().st_size
    assert size - tiny.files.weight_bytes < 1_000_000
    sections = run(["readelf", "-SW", tiny.files.shared])
    writable = re.findall(r"\.(?:data|bss|tbss)\S*\s+\w+\s+\w+ \w+ (\w+) .*W", sections)
    assert sum(int(size, 16) for size in writable) < 20_000, "weights belong into read-only data"


def test_load_and_create_take_less_than_20_ms(tiny: Built) -> None:
    program = textwrap.dedent("""
        import ctypes, sys, time
        start = time.perf_counter()
        library = ctypes.CDLL(sys.argv[1])
        instance = ctypes.c_void_p()
        assert library.network_create(2, ctypes.byref(instance)) == 0
        print(time.perf_counter() - start)
    """)
    command = [sys.executable, "-c", program, tiny.files.shared]
    assert min(float(run(command)) for _ in range(5)) < 0.020


@pytest.mark.parametrize("what", ["misuse", "many", "fork", "busy", "park", "allocations", "stack"])
def test_the_driver(driver: Path, tiny: Built, tmp_path: Path, what: str) -> None:
    run([driver, what, tiny.inputs(tmp_path)[1]])


def test_create_and_destroy_ten_thousand_times(driver: Path) -> None:
    run([driver, "cycle", 10_000])


def test_an_instance_takes_its_arena_and_two_megabytes(tiny: Built) -> None:
    """Resident memory of a process that has only the library: weights, arena, and little else."""
    program = textwrap.dedent("""
        import ctypes, sys, resource
        import numpy as np
        from pathlib import Path
        def resident():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmRSS:")[1].split()[0]) * 1024
        sys.path.insert(0, sys.argv[2])
        from standalone import Library
        x = np.load(sys.argv[3])
        before = resident()
        net = Library(sys.argv[1], 1)
        for _ in range(3):
            net.run([x])
        info = net.info
        print(resident() - before - info["weight_bytes"] - info["arena_bytes"])
    """)
    import tvmattend.runtime.standalone as loader

    ((x,),) = tiny.imported.sample_inputs(1)
    saved = tiny.sources / "x.npy"
    np.save(saved, x)
    beside = Path(loader.__file__).parent
    assert int(run([sys.executable, "-c", program, tiny.files.shared, beside, saved])) < 2_000_000


def test_two_networks_and_tvms_runtime_in_one_process(
    tiny: Built, vm: object, imported: ImportedModel, tmp_path: Path
) -> None:
    other = build(imported, host_target(threads=1), tmp_path, name="second-net")
    assert other.files.shared.name == "libsecond_net.so"
    del vm  # it is in this process
    assert "tvm" in sys.modules
    ((x,),) = imported.sample_inputs(1)
    one, two = Library(tiny.files.shared, 2), Library(other.files.shared, 2)
    (first,), (second,) = one.run([x]), two.run([x])
    assert np.array_equal(first, second)
    # Statically too: no name of one is a name of the other.
    names = [
        elf.symbols(built.sources / f"lib{built.files.prefix}.o").visible for built in (tiny, other)
    ]
    assert names[0].isdisjoint(names[1])


def test_two_networks_link_into_one_program(
    tiny: Built, imported: ImportedModel, gcc: str, tmp_path: Path
) -> None:
    other = build(imported, host_target(threads=1), tmp_path, name="2nd")
    assert other.files.prefix == "net_2nd"
    source = tmp_path / "two.cpp"
    source.write_text("""
        #include <cstring>
        #include "network.hpp"
        #include "net_2nd.hpp"
        template <class Net, template <class> class Buffer> int sum() { return 0; }
        int main() {
          network::Network one(2);
          net_2nd::Network two(2);
          network::Buffer<float> x(one.input()), y(one.output());
          net_2nd::Buffer<float> z(two.output());
          for (float &value : x) value = 0.5f;
          one.run({x}, {y});
          two.run({net_2nd_buffer{x.data(), NETWORK_INPUT_0_BYTES}}, {z});
          try { one.run({x}, {x}); return 2; } catch (const network::Error &error) {
            if (error.status() != NETWORK_WRONG_SIZE) return 3;
          }
          return std::memcmp(y.data(), z.data(), NETWORK_OUTPUT_0_BYTES) != 0;
        }
    """)
    includes = [f"-I{built.files.header.parent}" for built in (tiny, other)]
    libraries = [tiny.files.static, other.files.static, "-lm", "-lpthread", "-lstdc++"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    run([gcc, *flags, *includes, source, *libraries, "-o", tmp_path / "two"])
    run([tmp_path / "two"])


def test_python_refuses_what_does_not_fit(tiny: Built) -> None:
    net = Library(tiny.files.shared, 1)
    x = np.zeros(net.inputs[0].shape, "float32")
    for wrong in (x[0], x.astype("float64"), x.astype(">f4")):
        with pytest.raises(LibraryError, match="input `x` is float32"):
            net.run([wrong])
    with pytest.raises(LibraryError, match="input `x` is a list, not an array"):
        net.run([x.tolist()])
    with pytest.raises(LibraryError, match="0 inputs given"):
        net.run([])
    for threads in (-1, 65, 2**40, 1.5, "2", None, True):
        with pytest.raises(LibraryError, match="no number from 0 to 64"):
            Library(tiny.files.shared, threads)  # type: ignore[arg-type]
    net.close()
    net.close()
    with pytest.raises(LibraryError, match="instance is null"):
        net.run([x])


def test_a_file_system_that_runs_nothing_is_guessed(
    tiny: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    with pytest.raises(LibraryError, match="failed to map segment") as caught:
        Library(tiny.files.shared)
    assert "noexec" in caught.value.hint


def test_python_says_what_is_wrong_with_a_file(
    tiny: Built, tiny_a72: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny.files.shared.read_bytes()
    foreign = tiny_a72.files.shared.read_bytes()
    (name,) = re.findall(r"libc\.so\.6 => (\S+)", run(["ldd", tiny.files.shared]))
    cases = {
        "libempty.so": (b"", "is no library"),
        "libtext.so": (b"INPUT(libc.so.6)" * 9, "is no library"),
        "libcut.so": (content[:5000], "cut off"),
        "libheader.so": (content[:40], "cut off"),
        "libend.so": (content[:-1], "cut off"),
        "libother.so": (content, "holds no network `other`"),
        "libc.so": (Path(name).read_bytes(), "holds no network `c`"),
        "libforeign.so": (foreign, "is for aarch64; this is x86_64"),
    }
    for name, (bytes_, message) in cases.items():
        (tmp_path / name).write_bytes(bytes_)
        with pytest.raises(LibraryError, match=message):
            Library(tmp_path / name)
    with pytest.raises(LibraryError, match="No such file"):
        Library(tmp_path / "libnothing.so")
    with pytest.raises(LibraryError, match="Is a directory"):
        Library(_made(tmp_path / "libdirectory.so"))
    with pytest.raises(LibraryError, match="not called lib"):
        Library(tiny.files.static)
    # As in the docstring: not one of the system's libraries, but the file that is here.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LibraryError, match="holds no network `c`"):
        Library("libc.so")


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_python_says_that_a_library_is_for_musl(imported: ImportedModel, tmp_path: Path) -> None:
    musl = build(imported, host_target(threads=1), tmp_path, libc="musl")
    with pytest.raises(LibraryError, match="is for musl, which is not the C library") as refused:
        Library(musl.files.shared)
    assert "--libc" in refused.value.hint


def test_python_copies_only_what_cannot_be_used_in_place(tiny: Built) -> None:
    net = Library(tiny.files.shared, 2)
    ((x,),) = tiny.imported.sample_inputs(1)
    (expected,) = net.run([x])
    room = np.zeros(x.nbytes + 64 + 4, np.uint8)
    start = -room.ctypes.data % 64 + 4
    odd = room[start : start + x.nbytes].view("float32").reshape(x.shape)
    odd[...] = x
    backwards = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    for form in (odd, backwards):
        assert np.array_equal(net.run([form])[0], expected)


def test_profile_names_the_kernels(tiny: Built) -> None:
    net = Library(tiny.files.shared, 1)
    ((x,),) = tiny.imported.sample_inputs(1)
    steps = net.profile([x])
    assert len(steps) == tiny.files.steps == net.info["num_steps"]
    assert all(seconds >= 0 for _, seconds in steps)
    assert any("conv" in name for name, _ in steps)


def test_threads_sleep_when_there_is_nothing_to_do(tiny: Built) -> None:
    net = Library(tiny.files.shared, 4)
    ((x,),) = tiny.imported.sample_inputs(1)
    net.run([x])
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05
    net.close()


def test_signals_are_left_to_the_application(tiny: Built) -> None:
    net = Library(tiny.files.shared, 2)
    tasks = set(os.listdir("/proc/self/task"))  # noqa: PTH208
    blocked = [
        re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/self/task/{task}/status").read_text())
        for task in tasks
    ]
    masks = [int(found[1], 16) for found in blocked if found]
    assert any(mask & (1 << (2 - 1)) for mask in masks), "a worker blocks SIGINT"
    net.close()


def test_the_header_is_c_and_cpp(tiny: Built, gcc: str, tmp_path: Path) -> None:
    for name, standard in (("a.c", "-std=c11"), ("a.cpp", "-std=c++17")):
        (tmp_path / name).write_text('#include "network.h"\nint main(void) { return 0; }\n')
        command = [gcc, standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
        run([*command, f"-I{tiny.files.header.parent}", tmp_path / name])


def test_specs_are_those_of_the_network(tiny: Built) -> None:
    net = Library(tiny.files.shared, 1)
    assert [tuple(spec) for spec in net.inputs] == [
        (spec.name, spec.shape, spec.dtype, spec.layout) for spec in tiny.imported.inputs
    ]
    assert net.outputs[0].shape == tiny.imported.outputs[0].shape
    assert net.info["model"] == "attendnext_tiny"
    assert net.info["threads"] == 2
    assert ctypes.sizeof(ctypes.c_void_p) == 8


def test_a_missing_tool_is_named(
    tiny: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started a tool"))
    with pytest.raises(ToolMissingError, match="no-such-cc"):
        emit(tiny.scheduled, tiny.imported, tiny.target, tmp_path, cross_compiler="no-such-cc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compiler", ["aarch64", "silent"])
def test_a_compiler_that_does_not_fit_is_named(
    tiny: Built, tiny_a72: Built, gcc: str, tmp_path: Path, compiler: str
) -> None:
    """One for this machine where the target is another, and a program that is none."""
    command, built = (gcc, tiny_a72) if compiler == "aarch64" else ("/bin/true", tiny)
    with pytest.raises(CompileError) as refused:
        emit(built.scheduled, built.imported, built.target, tmp_path, cross_compiler=command)
    assert refused.value.hint == "check --cross-compiler, or leave it out to link with Zig"


def test_a_library_of_the_other_c_library_is_refused(tiny: Built, gcc: str, tmp_path: Path) -> None:
    options = {"libc": "musl", "cross_compiler": gcc}
    with pytest.raises(CompileError, match=r"needs libc\.so\.6.*not part of musl"):
        emit(tiny.scheduled, tiny.imported, tiny.target, tmp_path, **options)


def test_another_compiler_makes_the_same_library(tiny: Built, gcc: str, tmp_path: Path) -> None:
    files = emit(tiny.scheduled, tiny.imported, tiny.target, tmp_path, cross_compiler=gcc)
    ((x,),) = tiny.imported.sample_inputs(1)
    found = Library(files.shared, 2).run([x])[0]
    assert np.array_equal(found, Library(tiny.files.shared, 1).run([x])[0])
