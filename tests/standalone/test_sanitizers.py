# SPDX-License-Identifier: Apache-2.0
"""The generated C under Address-, UndefinedBehaviour- and ThreadSanitizer.

Twice: with the kernels that TVM compiled, into which a sanitizer cannot see, and with kernels in C,
into which it can: a barrier too few is a data race there.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from c_networks import DRIVER, HERE, Built, run

from tvmattend.standalone import source
from tvmattend.standalone.emit import weight_block
from tvmattend.standalone.graph import Call, Graph, Ref, Tensor
from tvmattend.standalone.kernels import Kernel, Param, Phase
from tvmattend.standalone.plan import Plan, Step, plan_memory

SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
STRICT = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
N, PARTS = 4096, 16

IN, OUT = Param("argument", 0), Param("argument", 1)
OWN, SHARED = Param("private", 0), Param("shared", 0)


@dataclass(frozen=True)
class Spec:
    name: str
    layout: str = ""


def _phase(symbol: str, params: tuple[Param, ...], parts: int, writes: Param) -> Phase:
    own = (4 * N // PARTS,) if OWN in params else ()
    writes_all = frozenset({writes, *([OWN] if own else [])})
    return Phase(f"network_kernel_{symbol}", params, parts, own, writes_all, None)


def fake_network() -> tuple[Graph, dict[str, Kernel], Plan]:
    """double -> reverse -> sum -> reverse -> double: every step needs what others wrote."""
    third = Param("argument", 2)
    kernels = {
        "double": Kernel("double", (_phase("double", (IN, OUT), PARTS, OUT),), ()),
        "reverse": Kernel("reverse", (_phase("reverse", (IN, OUT, third, OWN), PARTS, third),), ()),
        "sum": Kernel(
            "sum",
            (_phase("sum_0", (IN, SHARED), PARTS, SHARED), _phase("sum_1", (OUT, SHARED), 0, OUT)),
            (4 * PARTS,),
        ),
    }
    value, weight = [Ref("value", i) for i in range(6)], Ref("weight", 0)
    calls = (
        Call("double", (Ref("input", 0),), (value[0],)),
        Call("reverse", (value[0], weight), (value[1],)),
        Call("sum", (value[1],), (value[2],)),
        Call("reverse", (value[2], weight), (value[3],)),
        Call("double", (value[3],), (value[4],)),
        Call("reverse", (value[4], weight), (value[5],)),
    )
    values = tuple(Tensor(f"v{i}", (N,), "float32") for i in range(6))
    weights = (np.arange(N, dtype="float32"),)
    inputs = (Tensor("x", (N,), "float32"),)
    graph = Graph(inputs, values, weights, calls, (value[5],), (values[5],))
    return graph, kernels, plan_memory(graph, kernels)


def expected_of_fake(x: np.ndarray) -> np.ndarray:
    w = np.arange(N, dtype="float32")
    y = (2 * x)[::-1] + w
    # Summed as the kernel does: each part in order, then the parts.
    parts = [np.add.accumulate(part)[-1] for part in y.reshape(PARTS, -1)]
    total = np.add.accumulate(np.array(parts, "float32"))[-1]
    y = (total + np.arange(N, dtype="float32"))[::-1] + w
    return np.asarray((2 * y)[::-1] + w, "float32")


def write_fake(place: Path, plan: Plan | None = None, threads: int = 4) -> list[Path]:
    """Generate the fake network; give what a compiler needs."""
    graph, kernels, sound = fake_network()
    plan = sound if plan is None else plan
    spec = [Spec("x")]
    about = source.Description("network", "fake", "any", threads, "0" * 64, spec, spec)
    (place / "network.h").write_text(source.header(plan, graph, about))
    (place / "network.c").write_text(source.program(plan, graph, kernels, about))
    (place / "weights.bin").write_bytes(weight_block(graph, plan))
    (place / "weights.S").write_text(source.weights_assembly(plan, about, "weights.bin"))
    return [place / "network.c", place / "weights.S", HERE / "fake_kernels.c"]


def compile_with(gcc: str, sanitizer: str, sources: list[Path], place: Path) -> Path:
    program = place / f"driver-{sanitizer}"
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *SANITIZERS[sanitizer]]
    directory = sources[0].parent
    command = [gcc, *flags, f"-I{directory}", DRIVER, *sources, "-lm", "-lpthread", "-o", program]
    run(command, cwd=directory)
    return program


@pytest.fixture(scope="module", params=list(SANITIZERS))
def real(
    request: pytest.FixtureRequest, tiny: Built, gcc: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place = tmp_path_factory.mktemp("real")
    sources = [tiny.sources / "network.c", *map(Path, tiny.objects)]
    return compile_with(gcc, request.param, sources, place)


@pytest.fixture(scope="module", params=list(SANITIZERS))
def fake(
    request: pytest.FixtureRequest, gcc: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place = tmp_path_factory.mktemp("fake")
    return compile_with(gcc, request.param, write_fake(place), place)


WHAT = ["misuse", "many", "busy", "park"]


@pytest.mark.parametrize("what", WHAT)
def test_a_network_is_clean(real: Path, tiny: Built, tmp_path: Path, what: str) -> None:
    run([real, what, tiny.inputs(tmp_path)[1]], env={**os.environ, **STRICT})


def test_create_and_destroy_are_clean(real: Path) -> None:
    run([real, "cycle", 10_000], env={**os.environ, **STRICT})


@pytest.mark.parametrize("what", WHAT)
def test_kernels_that_the_sanitizer_sees_are_clean(fake: Path, tmp_path: Path, what: str) -> None:
    x = np.random.default_rng(3).integers(-9, 9, N).astype("float32")
    x.tofile(tmp_path / "x.bin")
    run([fake, what, tmp_path / "x.bin"], env={**os.environ, **STRICT})


@pytest.mark.parametrize("threads", [1, 2, 4, 5])
def test_the_fake_network_computes_what_it_should(fake: Path, tmp_path: Path, threads: int) -> None:
    x = np.random.default_rng(3).integers(-9, 9, N).astype("float32")
    x.tofile(tmp_path / "x.bin")
    run([fake, "run", tmp_path / "x.bin", tmp_path / "y.bin", threads])
    assert np.array_equal(np.fromfile(tmp_path / "y.bin", "float32"), expected_of_fake(x))


def test_by_default_no_more_threads_than_an_instance_can_have(gcc: str, tmp_path: Path) -> None:
    cpus = tmp_path / "cpus.c"
    cpus.write_text(
        "#define _GNU_SOURCE\n#include <sched.h>\n"
        "int sched_getaffinity(pid_t process, size_t size, cpu_set_t *cpus) {\n"
        "  (void)process, (void)size;\n"
        "  CPU_ZERO(cpus);\n"
        "  for (int cpu = 0; cpu < 100; ++cpu) CPU_SET(cpu, cpus);\n"
        "  return 0;\n}\n"
    )
    sources = [*write_fake(tmp_path, threads=100), cpus]
    run([compile_with(gcc, "address", sources, tmp_path), "cpus"])


def test_the_thread_sanitizer_sees_a_missing_barrier(gcc: str, tmp_path: Path) -> None:
    """The tests above can fail: without its barriers the network races."""
    _, _, plan = fake_network()
    assert any(step.sync for step in plan.steps)
    steps: list[Step] = [replace(step, sync=False) for step in plan.steps]
    sources = write_fake(tmp_path, replace(plan, steps=tuple(steps)))
    program = compile_with(gcc, "thread", sources, tmp_path)
    np.zeros(N, "float32").tofile(tmp_path / "x.bin")
    with pytest.raises(AssertionError, match="data race"):
        run(
            [program, "run", tmp_path / "x.bin", tmp_path / "y.bin", 4],
            env={**os.environ, **STRICT},
        )
