# SPDX-License-Identifier: Apache-2.0
"""The core against measured throughputs and latencies of a Cortex-A72, and its memory."""

import importlib.util
import random
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from tvmattend.errors import ToolMissingError
from tvmattend.machine import instructions
from tvmattend.machine.estimate import seconds
from tvmattend.machine.parameters import FITTED, SHIPPED
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import Block, Trace

pytestmark = pytest.mark.skipif(
    shutil.which("llvm-mca") is None, reason="the port model needs the package `llvm`"
)

_FILE = Path(__file__).parents[2] / "benchmarks" / "a72_micro.py"
_SPEC = importlib.util.spec_from_file_location("a72_micro", _FILE)
micro = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(micro)

MISS, DRAM, STREAM = 8, 2, 1


@pytest.mark.parametrize("case", micro.INSTRUCTIONS, ids=lambda case: case.name)
def test_each_instruction_is_near_the_measurement(case):
    assert micro.modelled(case) == pytest.approx(case.cycles, rel=0.06)


@pytest.mark.parametrize("case", micro.LOOPS, ids=lambda case: case.name)
def test_each_loop_is_near_and_not_below_what_its_busiest_unit_needs(case):
    found = micro.modelled(case)
    assert case.cycles <= found <= case.cycles * (1.06 if case.copies > 1 else 1.12)


def test_what_was_measured_and_what_was_not_are_told_apart(capsys):
    micro.show_core("title", ("limit", "above %"), micro.LOOPS[:1], "loops above their limits")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "title"
    assert "limit" in lines[1]
    assert "measured" not in lines[1] + lines[3]
    assert lines[3].startswith("loops above their limits, 1 rows: mean 0.")
    assert micro.summary("memory", 3, [0.1, -0.3]) == (
        "memory, 2 of 3 rows: mean 20.0 %, worst -30.0 %\n"
    )


def test_help_runs_nothing():
    result = CliRunner().invoke(micro.main, ["--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert "worst" not in result.output


def test_llvm_alone_is_pessimistic_where_the_corrections_say_so():
    chain = next(
        case for case in micro.INSTRUCTIONS if case.name == "fmla .4s accumulator, latency"
    )
    assert micro.modelled(chain, corrected=False) > 2 * micro.modelled(chain)


def test_what_stands_before_an_instruction_does_not_decide_its_cost(monkeypatch):
    """An FP division keeps one pipeline; what follows it still has the choice of two."""
    lines = ("fdiv v0.4s, v1.4s, v2.4s", "add v3.4s, v3.4s, v4.4s", "fcvtzs s5, s5")
    words = struct.unpack("<3I", micro.assemble(lines))
    for cache in ("_plain", "_shapes"):
        monkeypatch.setattr(instructions, cache, {})
    together = instructions.costs_of(words, corrected=False)
    instructions._cost.cache_clear()
    for word in words:
        for cache in ("_plain", "_shapes"):
            monkeypatch.setattr(instructions, cache, {})
        assert instructions.costs_of([word], corrected=False)[word] == together[word]
    assert together[words[1]].ports == (("V", 1),)
    instructions._cost.cache_clear()


def test_texts_of_a_shape_share_a_cost_and_keep_their_registers():
    words = struct.unpack("<2I", micro.assemble(["ldr q1, [x2, #16]", "ldr q30, [x7, #4080]"]))
    first, second = (instructions.costs_of(words)[word] for word in words)
    assert (first.ports, first.latency) == (second.ports, second.latency)
    assert second.operands.reads == (7,)
    assert second.operands.writes == (32 + 30,)


def chase(fate: int, times: int = 300) -> float:
    """Cycles of a load that waits for the one before, each with the same fate."""
    block = Block(0x10000, micro.assemble(["ldr x0, [x0]"]), {0: times})
    one = struct.pack("<I", 0x80000000) + (struct.pack("<I", fate) if fate else b"")
    samples = struct.pack("<3I", 0xFFFFFFFF, 0, times * len(one) // 4) + one * times
    return Program(Trace({0: block}, samples, (), 1, True)).cycles(SHIPPED)[0]


def test_a_chain_of_misses_pays_the_latency_of_where_they_hit():
    assert chase(0) == pytest.approx(4, abs=0.2)
    assert chase(MISS) == pytest.approx(4 + SHIPPED.l2_latency, rel=0.06)
    assert chase(MISS | DRAM) == pytest.approx(4 + SHIPPED.dram_latency, rel=0.06)


def test_a_covered_stream_pays_bandwidth_only():
    assert chase(MISS | DRAM | STREAM) < 0.4 * chase(MISS | DRAM)


def test_four_threads_share_the_memory_bus():
    four = SHIPPED.but(sharers=4)
    assert four.dram_line == pytest.approx(4 * four.but(sharers=2).dram_line / 2)
    assert four.dram_line >= 4 * SHIPPED.dram_line
    assert four.packed()[1] == pytest.approx(2 * SHIPPED.l2_line)


def test_dram_does_not_follow_the_clock():
    slow = SHIPPED.but(clock_hz=0.9e9)
    assert slow.dram_latency == pytest.approx(SHIPPED.dram_latency / 2)
    assert slow.dram_line == pytest.approx(SHIPPED.dram_line / 2)


@pytest.mark.parametrize("name", FITTED)
def test_what_ships_is_physically_plausible(name):
    plausible = FITTED[name]
    assert plausible.low <= getattr(SHIPPED, name) <= plausible.high
    assert plausible.source


def test_trivial_operands_shorten_a_division_only():
    words = struct.unpack("<2I", micro.assemble(["fdiv v0.4s, v1.4s, v2.4s", "fadd s0, s1, s2"]))
    plain, quick = instructions.costs_of(words), instructions.costs_of(words, quick_divide=True)
    assert quick[words[0]].latency < plain[words[0]].latency
    assert quick[words[1]] == plain[words[1]]


def test_without_llvm_the_error_names_the_package(monkeypatch):
    instructions.llvm_tool.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    try:
        with pytest.raises(ToolMissingError, match="llvm-mca") as caught:
            instructions.llvm_tool("llvm-mca")
        assert "apt install llvm" in caught.value.hint
    finally:
        instructions.llvm_tool.cache_clear()


def test_what_llvm_has_no_numbers_for_costs_a_slot_and_spoils_nothing():
    (add,) = struct.unpack("<I", micro.assemble(["fadd v0.4s, v1.4s, v2.4s"]))
    found = instructions.costs_of([0, add, 0xFFFFFFFF])
    assert found[0].slots == 1
    assert found[0].ports == ()
    assert found[0xFFFFFFFF].text == "nop"
    assert found[add].latency == 4


@pytest.mark.parametrize("wrong", [{"misses": 0}, {"misses": 33}, {"stores": 0.5}, {"stores": 65}])
def test_buffers_that_the_core_does_not_have_are_refused(wrong):
    block = Block(0x10000, struct.pack("<I", 0x91000400), {0: 1})
    with pytest.raises(ValueError, match="buffers that the core does not have"):
        seconds(Program(Trace({0: block}, b"", (), 1, True)), SHIPPED.but(**wrong))


def test_replays_at_the_same_time_do_not_share_a_predictor():
    """Two of them once had one between them: estimates depended on what ran beside."""

    def jumping(seed: int) -> Program:
        choose = random.Random(seed)
        code = struct.pack("<2I", 0x91000400, 0x14000004)  # add x0, x0, #1; b
        blocks = {i: Block(0x10000 + 256 * i, code, {0: 1}) for i in range(40)}
        samples = b""
        for _ in range(100):
            words = [0x80000000 | choose.randrange(40) for _ in range(512)]
            samples += struct.pack(f"<3I{len(words)}I", 0xFFFFFFFF, 0, len(words), *words)
        return Program(Trace(blocks, samples, (), 1, True))

    programs = [jumping(seed) for seed in range(4)]
    alone = [seconds(program, SHIPPED) for program in programs]
    with ThreadPoolExecutor(max_workers=2) as pool:
        for _ in range(3):
            assert list(pool.map(lambda program: seconds(program, SHIPPED), programs)) == alone
