# SPDX-License-Identifier: Apache-2.0
"""PrimFuncs become C functions of a part of the work; what has no such form is refused by name."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_networks import run

from tvmattend.errors import CompileError
from tvmattend.standalone import elf
from tvmattend.standalone.emit import compile_kernels
from tvmattend.standalone.kernels import Kernel, Param, Signature, generate, split_kernels
from tvmattend.target import host_target

N = 64


def _split(func: Any, results: int = 1) -> Kernel:
    import tvm

    mod = tvm.IRModule({"k": func.with_attr("global_symbol", "k")})
    return split_kernels(mod, {"k": Signature(results)}, "net", host_target(threads=1))["k"]


def _load(kernel: Kernel, place: Path) -> ctypes.CDLL:
    generate([kernel], host_target(threads=1)).write_to_file(str(place / "k.o"), "o")
    run(["gcc", "-shared", "-o", place / "k.so", place / "k.o"])
    return ctypes.CDLL(str(place / "k.so"))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _aligned(count: int) -> np.ndarray:
    room = np.zeros(4 * count + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * count].view("float32")


def test_a_parallel_loop_is_a_function_of_a_part(tmp_path: Path) -> None:
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")) -> None:
        for i in T.parallel(N):
            with T.sblock("b"):
                v = T.axis.spatial(N, i)
                y[v] = x[v] * T.float32(2)

    kernel = _split(func)
    (phase,) = kernel.phases
    assert (phase.symbol, phase.parts, phase.private) == ("net_kernel_k", N, ())
    assert phase.params == (Param("argument", 0), Param("argument", 1))
    assert phase.writes == {Param("argument", 1)}
    x, y = _aligned(N), _aligned(N)
    x[:] = np.arange(N)
    _load(kernel, tmp_path).net_kernel_k(_pointer(x), _pointer(y), 8, 24)
    assert np.array_equal(y[8:24], 2 * x[8:24])
    assert not y[:8].any()
    assert not y[24:].any(), "other parts belong to other threads"
    assert elf.symbols(tmp_path / "k.o").undefined <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}


def test_two_loops_are_two_phases_with_scratch_between(tmp_path: Path) -> None:
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")) -> None:
        t = T.sblock_alloc_buffer((N,), "float32")
        for i in T.parallel(N):
            with T.sblock("a"):
                v = T.axis.spatial(N, i)
                t[v] = x[v] + T.float32(1)
        for i in T.serial(N):
            with T.sblock("b"):
                v = T.axis.spatial(N, i)
                y[v] = t[N - 1 - v]

    kernel = _split(func)
    assert kernel.shared == (4 * N,)
    assert [phase.parts for phase in kernel.phases] == [N, 0]
    assert [phase.symbol for phase in kernel.phases] == ["net_kernel_k_0", "net_kernel_k_1"]
    shared = Param("shared", 0)
    assert [phase.writes for phase in kernel.phases] == [{shared}, {Param("argument", 1)}]
    library = _load(kernel, tmp_path)
    buffers = {Param("argument", 0): _aligned(N), Param("argument", 1): _aligned(N)}
    buffers[shared] = _aligned(N)
    buffers[Param("argument", 0)][:] = np.arange(N)
    first, second = kernel.phases
    library.net_kernel_k_0(*(_pointer(buffers[p]) for p in first.params), 0, N)
    library.net_kernel_k_1(*(_pointer(buffers[p]) for p in second.params))
    assert np.array_equal(buffers[Param("argument", 1)], np.arange(N, 0, -1))


def test_big_scratch_is_the_callers_and_small_scratch_is_on_the_stack() -> None:
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((4, 512), "float32"), y: T.Buffer((4, 512), "float32")) -> None:
        for i in T.parallel(4):
            with T.sblock("outer"):
                u = T.axis.spatial(4, i)
                big = T.sblock_alloc_buffer((512,), "float32")
                small = T.sblock_alloc_buffer((8,), "float32")
                for j in T.serial(512):
                    with T.sblock("a"):
                        v = T.axis.spatial(512, j)
                        big[511 - v] = x[u, v]
                for j in T.serial(8):
                    with T.sblock("s"):
                        v = T.axis.spatial(8, j)
                        small[7 - v] = x[u, v]
                for j in T.serial(512):
                    with T.sblock("b"):
                        v = T.axis.spatial(512, j)
                        y[u, v] = big[v] + small[v % 8]

    (phase,) = _split(func).phases
    assert phase.private == (2048,)
    assert Param("private", 0) in phase.params


def test_a_write_through_a_view_is_a_write_of_what_is_under_it() -> None:
    """Scratch that is declared again inside of a loop (FuseTIR's stages do that)."""
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")) -> None:
        t = T.sblock_alloc_buffer((N,), "float32")
        for i in T.parallel(4):
            with T.sblock("outer"):
                u = T.axis.spatial(4, i)
                part = T.match_buffer(t[u * 16 : u * 16 + 16], (16,), "float32", offset_factor=1)
                for j in T.serial(16):
                    with T.sblock("a"):
                        v = T.axis.spatial(16, j)
                        part[v] = x[u * 16 + v]
        for i in T.parallel(N):
            with T.sblock("b"):
                v = T.axis.spatial(N, i)
                y[v] = t[N - 1 - v]

    first, second = _split(func).phases
    assert first.writes == {Param("shared", 0)}
    assert second.writes == {Param("argument", 1)}


def test_a_kernel_that_writes_its_argument_is_refused() -> None:
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")) -> None:
        for i in T.serial(N):
            with T.sblock("b"):
                v = T.axis.spatial(N, i)
                x[v] = T.float32(0)
        for i in T.serial(N):
            with T.sblock("c"):
                v = T.axis.spatial(N, i)
                y[v] = x[v]

    with pytest.raises(CompileError, match="the kernel `k` writes its argument `x`"):
        _split(func)


def test_a_parallel_loop_inside_of_another_is_refused() -> None:
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((N, N), "float32"), y: T.Buffer((N, N), "float32")) -> None:
        for i in T.serial(N):
            for j in T.parallel(N):
                with T.sblock("b"):
                    u, v = T.axis.remap("SS", [i, j])
                    y[u, v] = x[u, v] * T.float32(2)

    with pytest.raises(CompileError, match="`k` has a parallel loop inside of another"):
        _split(func)


def test_a_call_of_something_that_a_c_library_lacks_is_refused(tmp_path: Path) -> None:
    from tvm.script import tirx as T  # noqa: N812

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")) -> None:
        for i in T.serial(N):
            with T.sblock("b"):
                v = T.axis.spatial(N, i)
                y[v] = T.call_extern("float32", "somebody_elses_function", x[v])

    with pytest.raises(CompileError, match="the kernels call somebody_elses_function"):
        compile_kernels({"k": _split(func)}, host_target(threads=1), tmp_path / "k.o")
