# SPDX-License-Identifier: Apache-2.0
"""The parts of the Cortex-A72 model against measured throughputs and latencies.

    python benchmarks/a72_micro.py

Three tables. Single instructions, beside what was measured: ocxtal/insn_bench_aarch64,
`results/nxp_lx2160a_a72.md` (a Cortex-A72 at 2 GHz). Inner loops (GEMM, depthwise, exp, copy), of
which nobody has published a measurement: beside the least that they can take, the cycles that the
busiest unit needs by those measurements. Loops over memory, under QEMU with caches, beside what
others measured on Raspberry Pi 4 boards; their errors are against the middle of what was measured
(of the reads in 256 KB, TM gives an upper limit alone, which stands for the upper end).
"""

import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from tvmattend.cli.main import errors_told
from tvmattend.machine.estimate import estimate
from tvmattend.machine.instructions import llvm_tool
from tvmattend.machine.parameters import SHIPPED
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import Block, Trace
from tvmattend.machine.tracing import Settings, trace

_WINDOW, _BLOCK_WORD = 0xFFFFFFFF, 0x80000000


class Case(NamedTuple):
    """Lines of assembly, `{i}` numbering copies; cycles of a copy: as measured, or the limit."""

    name: str
    lines: tuple[str, ...]
    copies: int
    cycles: float


def _throughput(name: str, line: str, per_cycle: float) -> Case:
    return Case(f"{name}, throughput", (line,), 24, 1 / per_cycle)


def _latency(name: str, line: str, cycles: float) -> Case:
    return Case(f"{name}, latency", (line,), 24, cycles)


INSTRUCTIONS: tuple[Case, ...] = (
    _throughput("fmla .4s", "fmla v{i}.4s, v30.4s, v31.4s", 1.0),
    _throughput("fmla .4s by element", "fmla v{i}.4s, v30.4s, v31.s[1]", 1.0),
    _throughput("fmla .2s", "fmla v{i}.2s, v30.2s, v31.2s", 2.0),
    _throughput("fmadd s", "fmadd s{i}, s30, s31, s29", 2.0),
    _throughput("fadd .4s", "fadd v{i}.4s, v30.4s, v31.4s", 1.0),
    _throughput("fmax .4s", "fmax v{i}.4s, v30.4s, v31.4s", 1.5),
    _throughput("add .4s", "add v{i}.4s, v30.4s, v31.4s", 1.5),
    _throughput("dup .4s lane", "dup v{i}.4s, v30.s[1]", 1.5),
    _throughput("smull .8h", "smull v{i}.8h, v30.8b, v31.8b", 1.0),
    _throughput("smlal .8h", "smlal v{i}.8h, v30.8b, v31.8b", 1.0),
    _throughput("sadalp .4s", "sadalp v{i}.4s, v30.8h", 1.0),
    _throughput("mul .4s", "mul v{i}.4s, v30.4s, v31.4s", 0.5),
    _throughput("mla .4s", "mla v{i}.4s, v30.4s, v31.4s", 0.5),
    _throughput("scvtf .4s", "scvtf v{i}.4s, v30.4s", 0.5),
    _throughput("ldr x", "ldr x{j}, [x29]", 1.0),
    _throughput("ldr q", "ldr q{i}, [x29]", 1.0),
    _throughput("ldp q", "ldp q{i}, q28, [x29]", 0.5),
    _throughput("ld1 4 registers", "ld1 {{ v0.4s, v1.4s, v2.4s, v3.4s }}, [x29]", 0.25),
    _throughput("ld1r .4s", "ld1r {{ v{i}.4s }}, [x29]", 1.0),
    _throughput("ld4 .4s", "ld4 {{ v0.4s, v1.4s, v2.4s, v3.4s }}, [x29]", 0.17),
    _throughput("str x", "str x{j}, [x29]", 0.99),
    _throughput("str q", "str q{i}, [x29]", 0.49),
    _throughput("stp q", "stp q{i}, q28, [x29]", 0.25),
    _throughput("st1 4 registers", "st1 {{ v0.4s, v1.4s, v2.4s, v3.4s }}, [x29]", 0.083),
    _throughput("add x", "add x{j}, x29, #1", 2.0),
    _latency("fmla .4s accumulator", "fmla v0.4s, v30.4s, v31.4s", 3.0),
    _latency("fmla .4s multiplicand", "fmla v0.4s, v0.4s, v31.4s", 7.0),
    _latency("fadd .4s", "fadd v0.4s, v0.4s, v31.4s", 4.0),
    _latency("fmul .4s", "fmul v0.4s, v0.4s, v31.4s", 4.0),
    _latency("fmax .4s", "fmax v0.4s, v0.4s, v31.4s", 3.0),
    _latency("add .4s", "add v0.4s, v0.4s, v31.4s", 3.0),
    _latency("smlal accumulator", "smlal v0.8h, v30.8b, v31.8b", 1.0),
    _latency("ldr x", "ldr x0, [x0]", 4.0),
    _latency("add x", "add x0, x0, #1", 1.0),
)
# One copy is an iteration; cycles are what its busiest unit needs by the table above, unmeasured.
LOOPS: tuple[Case, ...] = (
    Case(
        "GEMM 8x12: 24 fmla by element, 5 ldr q",
        (
            *(f"ldr q{n}, [x1, #{16 * n}]" for n in range(5)),
            *(f"fmla v{8 + n}.4s, v{n % 2}.4s, v{2 + n // 8}.s[{n % 4}]" for n in range(24)),
        ),
        4,
        24.0,
    ),
    Case(
        "depthwise 3x3, 4 outputs: 18 loads, 36 fmla, 4 stores",
        (
            *(f"movi v{n}.4s, #0" for n in range(4)),
            *(
                line
                for row in range(3)
                for line in (
                    *(f"ldr q{4 + n}, [x{1 + row}, #{16 * n}]" for n in range(6)),
                    *(f"fmla v{out}.4s, v{4 + out + tap}.4s, v{16 + 3 * row + tap}.4s"
                      for tap in range(3) for out in range(4)),
                )
            ),
            *(f"str q{n}, [x4, #{16 * n}]" for n in range(4)),
        ),
        2,
        38.0,  # 36 fmla take both FP units, 4 movi one of them
    ),
    Case(
        "exp of 32: range, polynomial, scale",
        tuple(
            line.format(a=n, b=8 + n, c=16 + n)
            for line in (
                "fmax v{a}.4s, v{a}.4s, v24.4s",
                "fmin v{a}.4s, v{a}.4s, v25.4s",
                "fmul v{b}.4s, v{a}.4s, v26.4s",
                "frintm v{b}.4s, v{b}.4s",
                "fcvtzs v{c}.4s, v{b}.4s",
                "fmls v{a}.4s, v{b}.4s, v27.4s",
                "fmls v{a}.4s, v{b}.4s, v28.4s",
                "fmul v{b}.4s, v{a}.4s, v29.4s",
                *("fmla v{b}.4s, v{a}.4s, v30.4s" for _ in range(5)),
                "fadd v{b}.4s, v{b}.4s, v31.4s",
                "shl v{c}.4s, v{c}.4s, #23",
                "add v{c}.4s, v{c}.4s, v31.4s",
                "fmul v{a}.4s, v{b}.4s, v{c}.4s",
            )
            for n in range(8)
        ),
        1,
        120.0,  # both FP units: for each vector eleven times 2 halves, four of 1, and 4 on one unit
    ),
    Case("copy: ldp q, stp q", ("ldp q0, q1, [x1], #32", "stp q0, q1, [x2], #32"), 12, 4.0),
)  # fmt: skip


def assemble(lines: Sequence[str]) -> bytes:
    """Give the encodings of assembly."""
    done = subprocess.run(
        [llvm_tool("llvm-mc"), "-triple=aarch64", "-show-encoding"],
        check=True, capture_output=True, text=True, input="\n".join(lines) + "\n",
    )  # fmt: skip
    found = re.findall(r"encoding: \[(.*?)\]", done.stdout)
    return b"".join(bytes(int(part, 16) for part in one.split(",")) for one in found)


def loop(lines: Sequence[str], times: int = 200) -> Trace:
    """Give the trace of a block that is executed again and again, its data in L1."""
    words = struct.pack("<3I", _WINDOW, 0, times) + struct.pack("<I", _BLOCK_WORD) * times
    return Trace({0: Block(0x10000, assemble(lines), {0: times})}, words, (), 1, False)


def modelled(case: Case, corrected: bool = True) -> float:
    """Give the model's cycles for one copy."""
    lines = [
        line.format(i=copy % 24, j=copy % 24) for copy in range(case.copies) for line in case.lines
    ]
    cycles = Program(loop(lines), corrected).cycles(SHIPPED)[0]
    return cycles / case.copies


class Traffic(NamedTuple):
    """A loop over memory under QEMU; the least and the most that was measured, and by whom."""

    name: str
    mode: str
    kilobytes: int
    rate: bool  # GB/s, else cycles for each line
    measured: tuple[float, float] | None
    by: str


# TM: tinymembench on a Raspberry Pi 4 at 1.5 GHz, ThomasKaiser/sbc-bench results/1MFf.txt;
# G110: geerlingguy/sbc-reviews#110, tinymembench; SB32: ThomasKaiser/sbc-bench#32 (overclocked);
# ST: sci-pi.org.uk/bench/stream.html; CC: chipsandcheese.com on the Graviton 1, an L2 of 2 MB.
TRAFFIC = (
    Traffic("copy, 32 MB", "c", 32768, True, (2.5, 2.8), "TM, G110"),
    Traffic("fill, 32 MB", "f", 32768, True, (3.2, 4.5), "TM, SB32"),
    Traffic("read a word of each line, 32 MB", "r", 32768, True, (3.9, 5.5), "TM, ST"),
    Traffic("read a word of each line, 256 KB", "r", 256, False, (8, 16), "CC, TM"),
    Traffic("read a word of every 5th line, 512 KB", "s", 512, False, None, "-"),
    Traffic("chase pointers, 8 KB", "p", 8, False, (4, 4), "CC"),
    Traffic("chase pointers, 256 KB", "p", 256, False, (21, 22), "CC, TM"),
    Traffic("chase pointers, 32 MB", "p", 32768, False, (180, 270), "-"),
)


def traffic(program: Path, case: Traffic) -> float:
    """Give the model's GB/s, or cycles for each line that is touched."""
    run, _ = trace([str(program), case.mode, str(case.kilobytes)], Settings())
    found = estimate(Program(run), SHIPPED)
    steps = case.kilobytes * 16 * {"s": 1 / 5, "p": 8}.get(case.mode, 1)
    return case.kilobytes * 1024e-9 / found.seconds if case.rate else found.whole.cycles / steps


def compile_loops(place: Path) -> Path:
    """Compile the loops for aarch64, without a C library of this machine."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-O2"]
    source = Path(__file__).with_name("a72_memory.c")
    subprocess.run([*command, "-static", "-o", str(place / "memory"), str(source)], check=True)
    return place / "memory"


def summary(what: str, of: int, errors: Sequence[float]) -> str:
    """Say which rows the errors are of, in a line."""
    rows = f"{len(errors)}" if len(errors) == of else f"{len(errors)} of {of}"
    mean, worst = sum(map(abs, errors)) / len(errors), max(errors, key=abs)
    return f"{what}, {rows} rows: mean {100 * mean:.1f} %, worst {100 * worst:.1f} %\n"


def show_core(title: str, columns: tuple[str, str], cases: Sequence[Case], what: str) -> None:
    """Print a table of what hits L1."""
    width = max(len(case.name) for case in (*INSTRUCTIONS, *LOOPS))
    print(title)
    print(f"{'cycles':<{width}}{columns[0]:>10}{'model':>8}{columns[1]:>9}{'LLVM alone':>12}")
    errors = []
    for case in cases:
        ours, plain = modelled(case), modelled(case, corrected=False)
        errors.append(ours / case.cycles - 1)
        print(f"{case.name:<{width}}{case.cycles:>10.2f}{ours:>8.2f}{100 * errors[-1]:>9.1f}"
              f"{plain:>12.2f}")  # fmt: skip
    print(summary(what, len(cases), errors))


def show_memory() -> None:
    """Print the table of what does not hit L1."""
    print("loops over memory, measured by others on boards")
    print(f"{'':<40}{'measured':>10}{'by':>10}{'model':>9}{'error %':>9}  unit")
    errors = []
    with tempfile.TemporaryDirectory() as place:
        program = compile_loops(Path(place))
        for loops in TRAFFIC:
            figure, error = traffic(program, loops), "-"
            if loops.measured is not None:
                errors.append(2 * figure / sum(loops.measured) - 1)
                error = f"{100 * errors[-1]:.1f}"
            ends = "-".join(dict.fromkeys(f"{end:g}" for end in loops.measured or ())) or "-"
            unit = "GB/s" if loops.rate else "cycles a line"
            print(f"{loops.name:<40}{ends:>10}{loops.by:>10}{figure:>9.2f}{error:>9}  {unit}")
    print(summary("errors of memory", len(TRAFFIC), errors), end="")


@click.command(help=__doc__.split("\n\n", 1)[1] if __doc__ else None)
def main() -> None:
    """Print the tables."""
    with errors_told():
        show_core(
            "single instructions, measured on silicon",
            ("measured", "error %"),
            INSTRUCTIONS,
            "errors of instructions",
        )
        show_core(
            "inner loops, by the ports' limits: what the busiest unit needs, not measured",
            ("limit", "above %"),
            LOOPS,
            "loops above their limits",
        )
        show_memory()


if __name__ == "__main__":
    main()
