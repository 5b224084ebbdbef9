# SPDX-License-Identifier: Apache-2.0
"""Sampled blocks through the out-of-order core: from a trace to cycles a block."""

import ctypes
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

from tvmattend.machine.instructions import Cost, costs_of
from tvmattend.machine.native import native
from tvmattend.machine.parameters import Parameters
from tvmattend.machine.trace import Trace

# Same order as in a72_core.c.
_PORTS = ("B", "I", "L", "M", "S", "F0", "F1", "V")
_KINDS = ("alu", "load", "store", "branch", "prefetch")
_INSTRUCTION = struct.Struct("<4B2b2B8s6s8s")
_BLOCK = struct.Struct("<QII")
_WINDOW, _BLOCK_WORD = 0xFFFFFFFF, 0x80000000
# A block that no window caught is replayed this often in a row, its data in L1.
_ALONE = 8
# Stores (but those of locks, which are exclusive), and whatever names an FP or vector register.
_WORK = re.compile(r"st(?!l?x)|.*\b[bhsdqv]\d+\b")


@dataclass
class Program:
    """A trace, ready for the core.

    Attributes:
        trace: What was executed.
        corrected: Whether measured costs stand in for LLVM's.
        quick_divide: Whether divisions have trivial operands; see `costs_of`.
        places: File, function, and whether it is the function's first, of each block; filled when
            a first estimate asks.
    """

    trace: Trace
    corrected: bool = True
    quick_divide: bool = False
    places: dict[int, tuple[str, str | None, bool]] = field(default_factory=dict)
    _alone: dict[Parameters, list[float]] = field(default_factory=dict)

    @cached_property
    def costs(self) -> Mapping[int, Cost]:
        """What each instruction costs, by encoding."""
        words = {word for block in self.trace.blocks.values() for word in block.words}
        return costs_of(words, self.corrected, self.quick_divide)

    @cached_property
    def longest(self) -> int:
        """The thread that worked most; 0 if none did.

        A thread that spins at a barrier executes as many instructions as those it waits for. So
        blocks count only if they store, or compute in vectors or floating point; all if none does.
        """
        blocks = self.trace.blocks.values()
        counted = [
            block for block in blocks if any(_WORK.match(self.costs[w].text) for w in block.words)
        ]

        def work(thread: int) -> int:
            return sum(len(b.words) * b.counts.get(thread, 0) for b in counted or blocks)

        return max(self.trace.threads, key=work, default=0)

    @cached_property
    def _tables(self) -> tuple[bytes, bytes, int]:
        encoded = {word: _encode(cost) for word, cost in self.costs.items()}
        size = max(self.trace.blocks, default=-1) + 1
        code, table, first = bytearray(), bytearray(_BLOCK.size * size), 0
        for number, block in self.trace.blocks.items():
            words = block.words
            _BLOCK.pack_into(table, _BLOCK.size * number, block.address, first, len(words))
            code += b"".join(encoded[word] for word in words)
            first += len(words)
        return bytes(code), bytes(table), size

    def cycles(self, parameters: Parameters, thread: int = 0) -> dict[int, float]:
        """Give the cycles of one execution of each block that a thread ran, on average."""
        sums, visits = self._replay(parameters, self.trace.samples, thread)
        alone = self._alone_cycles(parameters)
        return {
            number: sums[number] / visits[number] if visits[number] else alone[number]
            for number, block in self.trace.blocks.items()
            if block.counts.get(thread)
        }

    def _alone_cycles(self, parameters: Parameters) -> list[float]:
        if parameters not in self._alone:
            windows = b"".join(
                struct.pack("<3I", _WINDOW, 0, _ALONE)
                + struct.pack("<I", _BLOCK_WORD | number) * _ALONE
                for number in self.trace.blocks
            )
            sums, visits = self._replay(parameters, windows, 0)
            self._alone = {
                parameters: [s / v if v else 0.0 for s, v in zip(sums, visits, strict=True)]
            }
        return self._alone[parameters]

    def _replay(
        self, parameters: Parameters, samples: bytes, thread: int
    ) -> tuple[list[float], list[float]]:
        code, table, size = self._tables
        sums, visits = (ctypes.c_double * size)(), (ctypes.c_double * size)()
        numbers = parameters.packed()
        done = _core().a72_replay(
            code, table, ctypes.c_size_t(size), samples, ctypes.c_size_t(len(samples) // 4),
            ctypes.c_uint(thread), (ctypes.c_double * len(numbers))(*numbers), sums, visits,
        )  # fmt: skip
        if done == -2:
            raise ValueError(f"{parameters}: buffers that the core does not have")
        if done < 0:
            raise MemoryError
        return list(sums), list(visits)


@cache
def _core() -> ctypes.CDLL:
    library = ctypes.CDLL(str(native().core))
    library.a72_replay.restype = ctypes.c_long
    return library


@cache
def _encode(cost: Cost) -> bytes:
    operands, ports = cost.operands, dict(cost.ports)
    reads, writes = operands.reads[:8], operands.writes[:6]
    return _INSTRUCTION.pack(
        min(cost.slots, 16), _KINDS.index(operands.kind), min(cost.latency, 255), cost.forward,
        operands.accumulator, operands.base, len(reads), len(writes), bytes(reads), bytes(writes),
        bytes(min(ports.get(port, 0), 100) for port in _PORTS),
    )  # fmt: skip
