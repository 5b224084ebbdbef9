# SPDX-License-Identifier: Apache-2.0
"""Graph and kernels -> steps over one arena, with every address decided and then checked.

Tensors whose lives do not overlap share memory: largest first, each at the lowest offset that is
free for its whole life. What a network returns is written straight into the caller's buffers.
`check_plan` then replays the steps on a map of who wrote which byte last: the planner is not
trusted to have got the lives right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tvmattend.errors import CompileError
from tvmattend.standalone.graph import Graph, Ref
from tvmattend.standalone.kernels import ALIGNMENT, Kernel

Where = Literal["input", "output", "weight", "arena", "private"]


@dataclass(frozen=True)
class Place:
    """An address: a byte offset, or the caller's buffer of that number (`input`, `output`)."""

    where: Where
    offset: int


@dataclass(frozen=True)
class Touch:
    """What a step does with one tensor: the bytes, and whose content they must be or become."""

    place: Place
    size: int
    owner: str
    writes: bool


@dataclass(frozen=True)
class Step:
    """One C call.

    Attributes:
        symbol: The function, or "" for a copy from `pointers[0]` to `pointers[1]`.
        pointers: Its pointer arguments.
        parts: Iterations that the threads share; 0 if thread 0 runs the whole.
        sync: Whether all threads must have finished the steps before.
        touches: Its tensors; scratch of one thread is not listed.
    """

    symbol: str
    pointers: tuple[Place, ...]
    parts: int
    sync: bool
    touches: tuple[Touch, ...]


@dataclass(frozen=True)
class Plan:
    """A whole inference.

    Attributes:
        steps: In order.
        weight_offsets: Of each weight in the block of weights, in bytes.
        weight_bytes: Size of that block.
        arena_bytes: What the threads share.
        private_bytes: Scratch of each thread, on top.
    """

    steps: tuple[Step, ...]
    weight_offsets: tuple[int, ...]
    weight_bytes: int
    arena_bytes: int
    private_bytes: int


@dataclass
class _Block:
    """Something that needs memory in the arena from one step to another, both included."""

    owner: str
    size: int
    first: int
    last: int
    offset: int = -1


def plan_memory(graph: Graph, kernels: Mapping[str, Kernel]) -> Plan:
    """Decide every address, and where the threads have to wait for each other.

    Args:
        graph: The calls.
        kernels: The phases of each kernel.

    Raises:
        CompileError: The finished plan does not pass its check.
    """
    offsets, weight_bytes = _stack_up([array.nbytes for array in graph.weights])
    direct = _direct_outputs(graph)
    blocks = _blocks(graph, kernels, direct)
    arena_bytes = _assign(list(blocks.values()))

    def locate(ref: Ref) -> Place:
        if ref.space == "weight":
            return Place("weight", offsets[ref.index])
        if ref.space == "input":
            return Place("input", ref.index)
        if ref in direct:
            return Place("output", direct[ref])
        return Place("arena", blocks[_owner(ref)].offset)

    bare: list[Step] = []
    private_bytes = 0
    for number, call in enumerate(graph.calls):
        for phase in kernels[call.kernel].phases:
            scratch, scratch_bytes = _stack_up(phase.private)
            private_bytes = max(private_bytes, scratch_bytes)
            pointers, touches = [], []
            for param in phase.params:
                if param.role == "private":
                    pointers.append(Place("private", scratch[param.index]))
                    continue
                writes = param in phase.writes
                if param.role == "shared":
                    block = blocks[_scratch(number, param.index)]
                    touch = Touch(Place("arena", block.offset), block.size, block.owner, writes)
                else:
                    ref = (*call.arguments, *call.results)[param.index]
                    touch = Touch(locate(ref), graph.tensor(ref).size, _owner(ref), writes)
                pointers.append(touch.place)
                touches.append(touch)
            bare.append(Step(phase.symbol, tuple(pointers), phase.parts, False, tuple(touches)))
    bare.extend(_copies(graph, direct, locate))
    steps = _with_barriers(bare)
    plan = Plan(steps, tuple(offsets), weight_bytes, arena_bytes, private_bytes)
    check_plan(plan, graph)
    return plan


def check_plan(plan: Plan, graph: Graph) -> None:
    """Replay the plan on a map of who wrote which byte last.

    Raises:
        CompileError: A step reads something else than what was written for it, leaves the arena,
            is misaligned, writes what is read-only, or an output is not written.
    """
    content: list[tuple[Place, int, str]] = [
        (Place("input", index), tensor.size, _owner(Ref("input", index)))
        for index, tensor in enumerate(graph.inputs)
    ]
    content += [
        (Place("weight", offset), array.nbytes, _owner(Ref("weight", index)))
        for index, (offset, array) in enumerate(
            zip(plan.weight_offsets, graph.weights, strict=True)
        )
    ]
    limits = {"arena": plan.arena_bytes, "weight": plan.weight_bytes}
    for number, step in enumerate(plan.steps):
        name = f"step {number} ({step.symbol or 'copy'})"
        for touch in step.touches:
            place = touch.place
            if place.where in limits and not (
                0 <= place.offset <= limits[place.where] - touch.size
                and place.offset % ALIGNMENT == 0
            ):
                raise CompileError(f"{name} reaches outside of the {place.where}")
            if not touch.writes and (place, touch.size, touch.owner) not in content:
                raise CompileError(f"{name} reads {touch.owner}, which is not there any more")
        for touch in step.touches:
            if not touch.writes:
                continue
            if touch.place.where in {"input", "weight"}:
                raise CompileError(f"{name} writes into the {touch.place.where}s")
            for other in step.touches:
                if other is not touch and _overlap(
                    touch.place, touch.size, other.place, other.size
                ):
                    raise CompileError(f"{name} writes {touch.owner} over {other.owner}")
            content = [
                item for item in content if not _overlap(touch.place, touch.size, item[0], item[1])
            ]
            content.append((touch.place, touch.size, touch.owner))
    for index, ref in enumerate(graph.outputs):
        wanted = (Place("output", index), graph.tensor(ref).size, _owner(ref))
        if wanted not in content:
            raise CompileError(f"output {index} is not written")
    _check_barriers(plan.steps)


def _check_barriers(steps: Sequence[Step]) -> None:
    """Two steps that touch the same bytes, one writing, are apart by a barrier or one thread's."""
    for later, step in enumerate(steps):
        for earlier in range(later - 1, -1, -1):
            if any(between.sync for between in steps[earlier + 1 : later + 1]):
                break
            if (steps[earlier].parts or step.parts) and _hazard(steps[earlier], step):
                raise CompileError(f"steps {earlier} and {later} race")


def _with_barriers(steps: Sequence[Step]) -> tuple[Step, ...]:
    done: list[Step] = []
    since: list[Step] = []
    for step in steps:
        sync = any((other.parts or step.parts) and _hazard(other, step) for other in since)
        since = [step] if sync else [*since, step]
        done.append(Step(step.symbol, step.pointers, step.parts, sync, step.touches))
    return tuple(done)


def _hazard(one: Step, other: Step) -> bool:
    return any(
        (a.writes or b.writes) and _overlap(a.place, a.size, b.place, b.size)
        for a in one.touches
        for b in other.touches
    )


def _overlap(one: Place, one_size: int, other: Place, other_size: int) -> bool:
    if one.where != other.where:
        return False
    if one.where in {"input", "output"}:  # the caller's buffers are checked not to overlap
        return one.offset == other.offset
    return one.offset < other.offset + other_size and other.offset < one.offset + one_size


def _owner(ref: Ref) -> str:
    return f"{ref.space} {ref.index}"


def _scratch(call: int, index: int) -> str:
    return f"scratch {index} of call {call}"


def _direct_outputs(graph: Graph) -> dict[Ref, int]:
    """Values that the kernels write straight into an output; the first wins for one given twice."""
    direct: dict[Ref, int] = {}
    for place, ref in enumerate(graph.outputs):
        if ref.space == "value":
            direct.setdefault(ref, place)
    return direct


def _blocks(
    graph: Graph, kernels: Mapping[str, Kernel], direct: Mapping[Ref, int]
) -> dict[str, _Block]:
    """Everything that lives in the arena, with the steps between which it lives."""
    blocks: dict[str, _Block] = {}
    step = 0
    for number, call in enumerate(graph.calls):
        kernel = kernels[call.kernel]
        for phase in kernel.phases:
            for param in phase.params:
                if param.role == "private":
                    continue
                if param.role == "shared":
                    owner, size = _scratch(number, param.index), kernel.shared[param.index]
                else:
                    ref = (*call.arguments, *call.results)[param.index]
                    if ref.space != "value" or ref in direct:
                        continue
                    owner, size = _owner(ref), graph.tensor(ref).size
                blocks.setdefault(owner, _Block(owner, size, step, step)).last = step
            step += 1
    return blocks


def _assign(blocks: list[_Block]) -> int:
    """Give every block its offset; give the arena's size."""
    placed: list[_Block] = []
    for block in sorted(blocks, key=lambda b: (-b.size, b.first, b.owner)):
        neighbours = sorted(
            (b for b in placed if b.first <= block.last and block.first <= b.last),
            key=lambda b: b.offset,
        )
        offset = 0
        for other in neighbours:
            if offset + block.size <= other.offset:
                break
            offset = max(offset, _aligned(other.offset + other.size))
        block.offset = offset
        placed.append(block)
    return max((_aligned(block.offset + block.size) for block in placed), default=0)


def _copies(graph: Graph, direct: Mapping[Ref, int], locate: Callable[[Ref], Place]) -> list[Step]:
    """Outputs that no kernel writes: an input, a weight, or a value that is returned twice."""
    steps = []
    for place, ref in enumerate(graph.outputs):
        if direct.get(ref) != place:
            size, target = graph.tensor(ref).size, Place("output", place)
            touches = (
                Touch(locate(ref), size, _owner(ref), False),
                Touch(target, size, _owner(ref), True),
            )
            steps.append(Step("", (locate(ref), target), 0, False, touches))
    return steps


def _stack_up(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Aligned offsets of blocks one behind the other, and the size of the whole."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end = _aligned(end + size)
    return offsets, end


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
