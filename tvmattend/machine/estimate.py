# SPDX-License-Identifier: Apache-2.0
"""Counts times cycles: what a traced program would take on a Cortex-A72, in all and by function."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tvmattend.machine.elf import Library, read_library
from tvmattend.machine.instructions import Cost
from tvmattend.machine.parameters import LINE_BYTES, Parameters
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import EVENTS, Block, Trace

# Where a parallel region starts, in the thread pools that are known by name: TVM's, GNU's and
# LLVM's OpenMP (ncnn), and the barrier between the steps of our own libraries, which is the end of
# one region and the start of the next. What stripped libraries do (LiteRT, ONNX Runtime) is not
# seen, and costs nothing here.
_LAUNCHERS = (
    "TVMBackendParallelLaunch", "GOMP_parallel", "__kmpc_fork_call", "tvmattend_barrier",
)  # fmt: skip
# The part that starts of regions count for, so that the parts add up to the whole.
STARTS = "(starts of parallel regions)"

# A part whose busiest resource is idle for longer than this is bound by waiting, not by it.
_BUSY = 0.6


@dataclass
class Part:
    """A function, or everything.

    Attributes:
        name: Of the function.
        cycles: On the thread that starts and ends the work.
        instructions: Of all threads.
        fma: Multiply-accumulates of all threads, in cycles of both FMA ports: one for a vector of
            128 bits, half for one of 64 and for a number.
        calls: Executions of its first block, by the thread that starts the work.
        resources: Cycles that each resource is needed, if nothing else held it up.
        events: Totals of the cache model, by name.
        modules: PyTorch modules, where known.
    """

    name: str
    cycles: float = 0.0
    instructions: int = 0
    fma: float = 0.0
    calls: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    @property
    def bound(self) -> str:
        """What keeps it from being faster."""
        if not self.resources or not self.cycles:
            return "-"
        name, need = max(self.resources.items(), key=lambda pair: pair[1])
        return name if need >= _BUSY * self.cycles else "latency"

    @property
    def l1d_misses(self) -> int:
        """Of loads and stores."""
        return self.l2_misses + sum(
            self.events.get(name, 0) for name in ("l2_stream", "l2_lone", "store_l2")
        )

    @property
    def l2_misses(self) -> int:
        """Of loads and stores."""
        return sum(self.events.get(n, 0) for n in ("dram_stream", "dram_lone", "store_dram"))

    @property
    def dram_bytes(self) -> int:
        """Read and written back."""
        return LINE_BYTES * (self.l2_misses + self.events.get("writeback_dram", 0))

    def to_json(self, clock_hz: float, threads: int) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "modules": list(self.modules),
            "calls": self.calls,
            "cycles": round(self.cycles),
            "ms": self.cycles / clock_hz * 1e3,
            "instructions": self.instructions,
            "fma_utilisation": self.fma / (self.cycles * threads) if self.cycles else 0.0,
            "l1d_misses": self.l1d_misses,
            "l2_misses": self.l2_misses,
            "dram_bytes": self.dram_bytes,
            "bound": self.bound,
            "resources": {name: round(need) for name, need in self.resources.items()},
        }


@dataclass(frozen=True)
class Estimate:
    """What a program would take.

    Attributes:
        whole: Everything that was counted.
        parts: By function, the slowest first.
        threads: That worked.
        regions: Parallel regions that were started.
        parameters: Of the model.
    """

    whole: Part
    parts: tuple[Part, ...]
    threads: int
    regions: int
    parameters: Parameters

    @property
    def seconds(self) -> float:
        """On the board."""
        return self.whole.cycles / self.parameters.clock_hz

    def to_json(self) -> dict[str, Any]:
        """Plain data; see `tvmattend estimate --json`."""
        clock = self.parameters.clock_hz
        head = self.whole.to_json(clock, self.threads)
        for name in ("name", "modules", "calls"):
            del head[name]
        return {
            **head,
            "clock_hz": clock,
            "threads": self.threads,
            "parallel_regions": self.regions,
            "kernels": [part.to_json(clock, self.threads) for part in self.parts],
            "parameters": asdict(self.parameters),
        }


def estimate(
    program: Program,
    parameters: Parameters,
    threads: int = 1,
    group: Callable[[str, str | None], str | None] | None = None,
    own: Mapping[str, str] | None = None,
) -> Estimate:
    """Put counts and cycles together.

    With several threads, the time is that of the thread that worked most: fork and join leave it
    the largest share of each parallel loop. Where others executed a block too, they shared L2 and
    DRAM meanwhile.

    Args:
        program: What was executed.
        parameters: Of the model.
        threads: That worked at once.
        group: From a file's path and a function to the name of the part it counts for; None leaves
            the block out. By default each function is a part.
        own: For a file's path, the prefix of entries that own its local functions.
    """
    trace = program.trace
    main = program.longest
    alone = program.cycles(parameters, main)
    shared = program.cycles(parameters.but(sharers=threads), main) if threads > 1 else alone
    if not program.places:
        names = _Names(trace, own or {})
        program.places = {n: names.of(block.address) for n, block in trace.blocks.items()}
    parts: dict[str, Part] = {}
    whole = Part("all")
    regions = 0
    for number, block in trace.blocks.items():
        path, function, first = program.places[number]
        label = group(path, function) if group else function or Path(path).name
        if label is None:
            continue
        mine = block.counts.get(main, 0)
        if first and function in _LAUNCHERS:
            regions += mine
        cycles = 0.0
        if mine:
            share = (_sharers(block, main, threads) - 1) / max(1, threads - 1)
            cycles = mine * (alone[number] + share * (shared[number] - alone[number]))
        part = parts.setdefault(label, Part(label))
        if first:
            part.calls += mine
        _add((part, whole), block, cycles, mine, program.costs)
    if threads > 1 and regions:
        starts = regions * parameters.fork_ns * 1e-9 * parameters.clock_hz
        whole.cycles += starts
        parts[STARTS] = Part(STARTS, starts, calls=regions)
    for part in (*parts.values(), whole):
        _memory(part, parameters, threads)
    ordered = sorted(parts.values(), key=lambda part: -part.cycles)
    return Estimate(whole, tuple(ordered), threads, regions, parameters)


def _sharers(block: Block, main: int, threads: int) -> float:
    """Threads at work, on average, while `main` executes a block; loops are rarely cut evenly."""
    return min(float(threads), sum(block.counts.values()) / block.counts[main])


def seconds(program: Program, parameters: Parameters, threads: int = 1) -> float:
    """Give the time alone, which is what a fit wants; the same as `estimate(...).seconds`."""
    trace = program.trace
    if threads > 1:
        return estimate(program, parameters, threads).seconds
    main = program.longest
    cycles = program.cycles(parameters, main)
    total = sum(cycles[number] * trace.blocks[number].counts[main] for number in cycles)
    return total / parameters.clock_hz


def _add(
    parts: tuple[Part, ...], block: Block, cycles: float, mine: int, costs: Mapping[int, Cost]
) -> None:
    words = block.words
    executed = sum(block.counts.values())
    needs = _needs(costs[word] for word in words)
    fma = executed * sum(_fma(costs[word].text) for word in words)
    for part in parts:
        part.cycles += cycles
        part.instructions += executed * len(words)
        part.fma += fma
        for name, need in needs.items():
            part.resources[name] = part.resources.get(name, 0.0) + mine * need
        for counts in block.events.values():
            for name, count in zip(EVENTS, counts, strict=True):
                part.events[name] = part.events.get(name, 0) + count


def _needs(costs: Iterable[Cost]) -> dict[str, float]:
    needs = dict.fromkeys(("FMA ports", "load port", "store port", "front end"), 0.0)
    for cost in costs:
        ports = dict(cost.ports)
        needs["FMA ports"] += (ports.get("F0", 0) + ports.get("F1", 0) + ports.get("V", 0)) / 2
        needs["load port"] += ports.get("L", 0)
        needs["store port"] += ports.get("S", 0)
        needs["front end"] += cost.slots / 3
    return needs


def _fma(text: str) -> float:
    if not text.startswith(("fmla", "fmls", "fmadd", "fmsub")):
        return 0.0
    return 1.0 if text.split(",", 1)[0].endswith((".4s", ".2d")) else 0.5


def _memory(part: Part, parameters: Parameters, threads: int) -> None:
    """The memory system's share is what one thread would wait for, were it bandwidth alone."""
    lines = part.l1d_misses + part.events.get("writeback_l2", 0)
    shared = 2.0 if threads > 1 else 1.0
    part.resources["L2"] = lines * parameters.l2_line / shared
    part.resources["DRAM"] = part.dram_bytes / LINE_BYTES * parameters.dram_line


class _Names:
    """Names executed addresses by the files that were mapped there."""

    def __init__(self, trace: Trace, own: Mapping[str, str]) -> None:
        self._maps = sorted(trace.maps)
        self._own = own
        self._libraries: dict[str, Library | None] = {}

    def of(self, address: int) -> tuple[str, str | None, bool]:
        """Give the file, the function, and whether the address is the function's first."""
        for mapped in self._maps:
            if mapped.start <= address < mapped.end:
                library = self._library(mapped.path)
                if library is None:
                    return mapped.path, None, False
                place = library.address_of(address - mapped.start + mapped.offset)
                if place is None:
                    return mapped.path, None, False
                function = library.name_of(place)
                return mapped.path, function, place in library.entries
        return "(unmapped)", None, False

    def _library(self, path: str) -> Library | None:
        if path not in self._libraries:
            file = Path(path)
            sound = file.is_file() and _is_elf(file)
            self._libraries[path] = read_library(file, self._own.get(path, "")) if sound else None
        return self._libraries[path]


def _is_elf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"
