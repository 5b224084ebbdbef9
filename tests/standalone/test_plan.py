# SPDX-License-Identifier: Apache-2.0
"""Every plan passes the replay; a plan that is wrong in one place does not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvmattend.errors import CompileError
from tvmattend.standalone.graph import Call, Graph, Ref, Tensor
from tvmattend.standalone.kernels import ALIGNMENT, Kernel, Param, Phase
from tvmattend.standalone.plan import Place, Plan, check_plan, plan_memory


def _kernel(name: str, arguments: int, parts: int, shared: int, private: int) -> Kernel:
    """One result; with `shared` bytes, two phases that hand them over."""
    ins = tuple(Param("argument", i) for i in range(arguments))
    out, scratch = Param("argument", arguments), Param("shared", 0)
    own = (Param("private", 0),) if private else ()
    sizes = (private,) if private else ()
    if not shared:
        writes = frozenset({out, *own})
        return Kernel(name, (Phase(name, (*ins, out, *own), parts, sizes, writes, None),), ())
    first = Phase(f"{name}_0", (*ins, scratch, *own), parts, sizes, frozenset({scratch}), None)
    second = Phase(f"{name}_1", (out, scratch), 0, (), frozenset({out}), None)
    return Kernel(name, (first, second), (shared,))


@st.composite
def networks(draw: st.DrawFn) -> tuple[Graph, dict[str, Kernel]]:
    """Random networks: any value may feed any later kernel, and be an output."""
    size = st.integers(1, 500)
    inputs = tuple(
        Tensor(f"x{i}", (draw(size),), "float32") for i in range(draw(st.integers(1, 2)))
    )
    weights = tuple(np.zeros(draw(size), "float32") for _ in range(draw(st.integers(0, 2))))
    known = [Ref("input", i) for i in range(len(inputs))]
    known += [Ref("weight", i) for i in range(len(weights))]
    values, calls, kernels = [], [], {}
    for number in range(draw(st.integers(1, 12))):
        arguments = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)))
        result = Ref("value", number)
        values.append(Tensor(f"v{number}", (draw(size),), "float32"))
        shared = draw(st.sampled_from([0, 0, 100, 4000]))
        private = draw(st.sampled_from([0, 256, 5000]))
        parts = draw(st.sampled_from([0, 1, 4, 57]))
        kernels[f"k{number}"] = _kernel(f"k{number}", len(arguments), parts, shared, private)
        calls.append(Call(f"k{number}", arguments, (result,)))
        known.append(result)
    outputs = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)))
    return Graph(inputs, tuple(values), weights, tuple(calls), outputs, ()), kernels


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_every_plan_passes_its_replay(network: tuple[Graph, dict[str, Kernel]]) -> None:
    graph, kernels = network
    plan = plan_memory(graph, kernels)  # replays itself
    everything = sum(-(-tensor.size // ALIGNMENT) * ALIGNMENT for tensor in graph.values)
    everything += sum(-(-size // 64) * 64 for k in kernels.values() for size in k.shared)
    assert plan.arena_bytes <= everything
    assert plan.private_bytes % ALIGNMENT == plan.weight_bytes % ALIGNMENT == 0
    for step in plan.steps:
        assert all(
            place.offset % ALIGNMENT == 0
            for place in step.pointers
            if place.where in {"arena", "weight", "private"}
        )


def _chain(length: int) -> tuple[Graph, dict[str, Kernel]]:
    """x -> k0 -> k1 -> ... -> y, each over 4 threads."""
    values = tuple(Tensor(f"v{i}", (100,), "float32") for i in range(length))
    calls, before = [], Ref("input", 0)
    for number in range(length):
        calls.append(Call("k", (before,), (Ref("value", number),)))
        before = Ref("value", number)
    graph = Graph((Tensor("x", (100,), "float32"),), values, (), tuple(calls), (before,), ())
    return graph, {"k": _kernel("k", 1, 4, 0, 0)}


def test_a_chain_needs_two_tensors_and_a_barrier_a_step() -> None:
    graph, kernels = _chain(6)
    plan = plan_memory(graph, kernels)
    assert plan.arena_bytes == 2 * 448
    assert [step.sync for step in plan.steps] == [False, True, True, True, True, True]
    assert plan.steps[-1].pointers[1] == Place("output", 0)


def test_what_a_phase_has_read_makes_room_for_what_the_next_one_writes() -> None:
    graph, _ = _chain(6)
    plan = plan_memory(graph, {"k": _kernel("k", 1, 4, 400, 0)})
    assert len(plan.steps) == 12
    assert plan.arena_bytes == 2 * 448


def test_steps_of_one_thread_need_no_barrier() -> None:
    graph, _ = _chain(3)
    plan = plan_memory(graph, {"k": _kernel("k", 1, 0, 0, 0)})
    assert not any(step.sync for step in plan.steps)


def test_independent_steps_need_no_barrier_between_them() -> None:
    values = tuple(Tensor(f"v{i}", (100,), "float32") for i in range(2))
    calls = tuple(Call("k", (Ref("input", 0),), (Ref("value", i),)) for i in range(2))
    outputs = (Ref("value", 0), Ref("value", 1))
    graph = Graph((Tensor("x", (100,), "float32"),), values, (), calls, outputs, ())
    plan = plan_memory(graph, {"k": _kernel("k", 1, 4, 0, 0)})
    assert not any(step.sync for step in plan.steps)


def test_outputs_that_no_kernel_writes_are_copied() -> None:
    graph, kernels = _chain(2)
    graph = replace(graph, outputs=(Ref("value", 1), Ref("value", 1), Ref("input", 0)))
    plan = plan_memory(graph, kernels)
    assert [step.pointers for step in plan.steps if not step.symbol] == [
        (Place("output", 0), Place("output", 1)),
        (Place("input", 0), Place("output", 2)),
    ]


def _moved(plan: Plan, number: int, offset: int) -> Plan:
    """The plan with what step `number` writes moved to another place in the arena."""
    steps = list(plan.steps)
    place = Place("arena", offset)
    old = next(touch.place for touch in steps[number].touches if touch.writes)
    for index in (number, number + 1):
        step = steps[index]
        touches = tuple(
            replace(touch, place=place) if touch.place == old else touch for touch in step.touches
        )
        pointers = tuple(place if pointer == old else pointer for pointer in step.pointers)
        steps[index] = replace(step, touches=touches, pointers=pointers)
    return replace(plan, steps=tuple(steps))


def test_a_wrong_plan_does_not_pass() -> None:
    graph, kernels = _chain(5)
    plan = plan_memory(graph, kernels)
    with pytest.raises(CompileError, match="over value 0"):
        check_plan(_moved(plan, 1, plan.steps[0].pointers[1].offset), graph)
    with pytest.raises(CompileError, match="outside of the arena"):
        check_plan(_moved(plan, 1, plan.arena_bytes), graph)
    with pytest.raises(CompileError, match="outside of the arena"):
        check_plan(_moved(plan, 1, 4), graph)
    with pytest.raises(CompileError, match="output 0 is not written"):
        check_plan(replace(plan, steps=plan.steps[:-1]), graph)
    with pytest.raises(CompileError, match="reads value 1, which is not there"):
        check_plan(replace(plan, steps=(plan.steps[0], *plan.steps[2:])), graph)
    without = [replace(step, sync=False) for step in plan.steps]
    with pytest.raises(CompileError, match="steps 0 and 1 race"):
        check_plan(replace(plan, steps=tuple(without)), graph)


def test_a_step_may_not_write_what_is_read_only() -> None:
    graph, kernels = _chain(2)
    plan = plan_memory(graph, kernels)
    step = plan.steps[0]
    touches = tuple(replace(touch, writes=True) for touch in step.touches)
    with pytest.raises(CompileError, match="writes into the inputs"):
        check_plan(replace(plan, steps=(replace(step, touches=touches), plan.steps[1])), graph)
