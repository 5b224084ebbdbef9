# SPDX-License-Identifier: Apache-2.0
"""What each instruction costs: LLVM's Cortex-A72 ports and latencies, corrected from measurements.

LLVM maps `cortex-a72` to its Cortex-A57 model. Where measured silicon differs, `CORRECTIONS` says
so, with numbers from the tables of ocxtal/insn_bench_aarch64 for an NXP LX2160A, a Cortex-A72
(`results/nxp_lx2160a_a72.md`).
"""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tvmattend.errors import ToolMissingError
from tvmattend.machine.answers import Answer, Answers
from tvmattend.machine.operands import Operands, operands_of
from tvmattend.machine.parameters import CORE
from tvmattend.storage import cache_root

# LLVM's names of the A57's pipelines, and ours: branch, integer, load, multi-cycle, store, F0, F1.
_PORTS = {
    "A57UnitB": "B", "A57UnitI": "I", "A57UnitL": "L", "A57UnitM": "M", "A57UnitS": "S",
    "A57UnitW": "F0", "A57UnitX": "F1",
}  # fmt: skip

_BEGIN, _END = "# LLVM-MCA-BEGIN", "# LLVM-MCA-END"
# What llvm-mca says of an instruction that it has no numbers for; the last since LLVM 18.
_UNKNOWN = re.compile(r"unsupported instruction|parse|unable to resolve scheduling class")

# What LLVM has said in this process: kernels of a tuning run are made of the same instructions.
_texts: dict[int, str] = {}
_plain: dict[str, "Cost"] = {}
_shapes: dict[str, Answer] = {}


@dataclass(frozen=True)
class Cost:
    """One instruction on the core.

    Attributes:
        text: Assembly.
        slots: Places it takes of the three that are dispatched in a cycle.
        latency: Cycles from issue to result; for a load, with the data in L1.
        forward: Cycles from one accumulation to the next on the same register.
        ports: Cycles on each pipeline; `V` is either of F0 and F1, for each cycle anew.
        operands: Registers.
    """

    text: str
    slots: int
    latency: int
    forward: int
    ports: tuple[tuple[str, int], ...]
    operands: Operands


@cache
def llvm_tool(name: str) -> str:
    """Find `llvm-mc` or `llvm-mca`, of any version from 14 on.

    Raises:
        ToolMissingError: There is none.
    """
    for candidate in (name, *(f"{name}-{version}" for version in range(30, 13, -1))):
        path = shutil.which(candidate)
        if path is not None:
            return path
    raise ToolMissingError(f"there is no `{name}`", "install LLVM 14 or later: `apt install llvm`")


def require_llvm() -> None:
    """Find LLVM's tools before a program is run for nothing.

    Raises:
        ToolMissingError: One is missing.
    """
    for name in ("llvm-mc", "llvm-mca"):
        llvm_tool(name)


def costs_of(
    words: Collection[int], corrected: bool = True, quick_divide: bool = False
) -> dict[int, Cost]:
    """Look up instructions by their 32-bit encodings.

    Args:
        words: Encodings.
        corrected: Whether measurements stand in for LLVM's numbers.
        quick_divide: Whether FP divisions end early. The A72's divider stops when the rest of the
            quotient is known, so `0 / x` takes the least of the optimisation guide's ranges; LLVM
            has the greatest. A network whose weights are all zero divides zeros.

    Raises:
        ToolMissingError: LLVM's tools are missing, or do not know the core.
    """
    _texts.update(_disassemble(sorted(set(words) - _texts.keys())))
    texts = {word: _texts[word] for word in set(words)}
    _learn(set(texts.values()) - _plain.keys())
    return {word: _cost(text, corrected, quick_divide) for word, text in texts.items()}


@cache
def _cost(text: str, corrected: bool, quick_divide: bool) -> Cost:
    """Of a text that LLVM was asked about."""
    cost = correct(_plain[text]) if corrected else _plain[text]
    return _quick(cost) if quick_divide else cost


def _learn(texts: Collection[str]) -> None:
    """Ask LLVM about one instruction of each shape, and give the others of that shape its cost."""
    shapes = {text: _shape(text) for text in texts}
    if not set(shapes.values()) <= _shapes.keys():
        _shapes.update(_kept(cache_root()).news())
    asked = {shape: text for text, shape in sorted(shapes.items()) if shape not in _shapes}
    if asked:
        found = _analyse(sorted(asked.values()))
        fresh = {shape: found[text] for shape, text in asked.items()}
        _shapes.update(fresh)
        _kept(cache_root()).add(fresh)
    for text, shape in shapes.items():
        slots, latency, ports = _shapes[shape]
        _plain[text] = Cost(text, slots, latency, 0, ports, operands_of(text))


@cache
def _kept(root: Path) -> Answers:
    """The answers on disk of this LLVM, asked as this file asks."""
    asking = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return Answers(root / "llvm" / f"{CORE}-{llvm_version()}-{asking}")


@cache
def llvm_version() -> str:
    """Give the version of LLVM's tools: another one's port model may say something else.

    Raises:
        ToolMissingError: They do not say it.
    """
    shown, message = _run("llvm-mca", ["--version"], "")
    version = re.search(r"version (\S+)", shown)
    if version is None:
        raise _broken("llvm-mca", message)
    return version[1]


def _shape(text: str) -> str:
    """The text without the numbers of its registers and, where it does no more, without constants.

    LLVM's numbers of an A57 depend on neither; on a shift's distance they may.
    """
    name, _, rest = text.partition("\t")
    rest = _REGISTER.sub(r"\1", rest)
    address = "[" in rest or name.startswith(("b", "cb", "tb", "adr"))
    if address or (name in _PLAIN and not _SHIFT.search(rest)):
        rest = _OFFSET.sub("#", rest)
    return f"{name}\t{rest}"


def _run(tool: str, arguments: list[str], text: str) -> tuple[str, str]:
    triple = "-triple=aarch64" if tool == "llvm-mc" else "-mtriple=aarch64"
    done = subprocess.run(
        [llvm_tool(tool), triple, f"-mcpu={CORE}", *arguments],
        check=False,
        capture_output=True,
        text=True,
        input=text,
    )
    return done.stdout, done.stderr


def _broken(tool: str, message: str) -> ToolMissingError:
    first = (message.strip().splitlines() or ["no output"])[0]
    return ToolMissingError(
        f"`{tool}` failed: {first}", "install LLVM 14 or later with its AArch64 target"
    )


def _disassemble(words: list[int]) -> dict[int, str]:
    """Encodings that LLVM does not know for this core (padding, data) count as `nop`."""
    if not words:
        return {}
    texts = {}
    pending = words
    rows = "\n".join(
        " ".join(f"{byte:#04x}" for byte in word.to_bytes(4, "little")) for word in words
    )
    shown, message = _run("llvm-mc", ["--disassemble", "--show-encoding"], rows)
    if not shown:
        raise _broken("llvm-mc", message)
    for line in shown.splitlines():
        match = re.match(r"\s*(.*?)\s*// encoding: \[(.*?)\]", line)
        if match:
            code = bytes(int(part, 16) for part in match.group(2).split(","))
            texts[int.from_bytes(code, "little")] = match.group(1)
    for word in pending:
        texts.setdefault(word, "nop")
    return texts


def _analyse(texts: list[str]) -> dict[str, Answer]:
    """Ask llvm-mca about each instruction; one that it has no numbers for costs a slot."""
    costs: dict[str, Answer] = {}
    for start in range(0, len(texts), 4000):
        costs.update(_part(texts[start : start + 4000]))
    return costs


def _part(texts: list[str]) -> dict[str, Answer]:
    """Two copies of each, in a region of their own.

    What stands before an instruction in its region decides which of two pipelines it takes. One
    unknown instruction spoils a report, so it is halved.
    """
    regions = ("\n".join((_BEGIN, *_independent(text), _END)) for text in texts)
    output, message = _run(
        "llvm-mca",
        ["-iterations=1", "-json", "-instruction-info", "-resource-pressure"],
        "\n".join(regions) + "\n",
    )
    if output:
        return _read(texts, json.loads(output))
    if not _UNKNOWN.search(message):
        raise _broken("llvm-mca", message)
    if len(texts) == 1:
        return {texts[0]: Answer(1, 1, ())}
    middle = len(texts) // 2
    return {**_part(texts[:middle]), **_part(texts[middle:])}


def _independent(text: str) -> tuple[str, str]:
    """Two copies with destinations of their own: the second must not wait for the first.

    One that waits goes where the first went, and an operation of either FP pipeline looks as if it
    had only one. Register lists stay: their numbers must follow each other.
    """
    first = _REGISTER.search(text)
    if first is None or "{" in text:
        return text, text
    taken = {first[2], "6", "7"}

    def copy(number: str) -> str:
        def other(match: re.Match[str]) -> str:
            if match.start() == first.start():
                return match[1] + number
            return match[1] + ("8" if match[2] in taken else match[2])

        return _REGISTER.sub(other, text)

    return copy("6"), copy("7")


def _read(texts: list[str], report: dict[str, Any]) -> dict[str, Answer]:
    resources = [name.split(".")[0] for name in report["TargetInfo"]["Resources"]]
    costs = {}
    for text, region in zip(texts, report["CodeRegions"], strict=True):
        ports: tuple[dict[str, float], ...] = ({}, {})
        for row in region["ResourcePressureView"]["ResourcePressureInfo"]:
            port = _PORTS.get(resources[row["ResourceIndex"]])
            if port and row["InstructionIndex"] < 2:  # the row after the last is the sum
                mine = ports[row["InstructionIndex"]]
                mine[port] = mine.get(port, 0) + row["ResourceUsage"]
        info, used = region["InstructionInfoView"]["InstructionList"][0], _either(*ports)
        costs[text] = Answer(
            slots=max(1, int(info["NumMicroOpcodes"])),
            latency=max(1, int(info["Latency"])),
            ports=tuple(sorted((port, max(1, round(n))) for port, n in used.items())),
        )
    return costs


def _either(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Two copies in a row: when they go to different FP pipelines, the operation takes either."""
    vector = {"F0", "F1"}
    if first.keys() & vector != second.keys() & vector or vector <= first.keys():
        others = {port: n for port, n in first.items() if port not in vector}
        return {**others, "V": sum(n for port, n in first.items() if port in vector)}
    return first


_REGISTER = re.compile(r"\b([xwvqdshb])(\d+)\b")
_OFFSET = re.compile(r"#-?(0x)?[0-9a-f]+\b")
# Integer operations that are the same whatever they add, compare or move.
_PLAIN = {
    "add",
    "adds",
    "and",
    "ands",
    "cmn",
    "cmp",
    "eor",
    "mov",
    "movk",
    "orr",
    "sub",
    "subs",
    "tst",
}
_SHIFT = re.compile(r"\b([al]sl|[al]sr|ror|msl|[su]xt[bhwx])\b")

# A register of 128 bits, as an operand.
_Q = re.compile(r"v\d+\.(16b|8h|4s|2d)|\bq\d+")


def correct(cost: Cost) -> Cost:
    """Put measured numbers in the place of LLVM's."""
    name, _, rest = cost.text.partition("\t")
    first = rest.split(",", 1)[0]
    wide = _Q.search(first) is not None
    if cost.operands.kind in {"load", "store"}:
        return _structure(cost, name)
    for rule in CORRECTIONS:
        if rule.name.match(name) and (rule.wide is None or rule.wide == wide):
            ports = cost.ports
            if rule.ports is not None:
                ports = (*rule.ports, *(pair for pair in ports if pair[0] not in {"F0", "F1", "V"}))
            cost = replace(
                cost,
                latency=rule.latency or cost.latency,
                forward=rule.forward or cost.forward,
                ports=ports,
            )
            break
    if cost.operands.kind == "alu" and wide:
        # A 128-bit result takes two 64-bit entries of the rename stage: three a cycle, so the
        # measured throughput of any such operation is at most 1.5 a cycle.
        cost = replace(cost, slots=max(cost.slots, 2))
    return cost


def _structure(cost: Cost, name: str) -> Cost:
    """LD2-LD4 interleave at 3, 5, 6 cycles; ST1 of three and four registers takes 8 and 12."""
    registers = cost.text.partition("{")[2].partition("}")[0].count("v")
    lane = "}[" in cost.text
    if name in {"ld2", "ld3", "ld4"} and not lane and ".2d" not in cost.text:
        others = tuple(pair for pair in cost.ports if pair[0] != "L")
        return replace(cost, latency=11, ports=(("L", {2: 3, 3: 5, 4: 6}[registers]), *others))
    if name == "st1" and not lane and registers > 2:
        others = tuple(pair for pair in cost.ports if pair[0] != "S")
        return replace(cost, ports=(("S", {3: 8, 4: 12}[registers]), *others))
    return cost


def _quick(cost: Cost) -> Cost:
    """Arm UAN 0016A: FDIV of single precision 6-11 cycles a lane pair, blocking the pipeline."""
    if not cost.text.startswith("fdiv\t"):
        return cost
    if ".4s" in cost.text:
        return replace(cost, latency=14, ports=(("F0", 12),))
    return replace(cost, latency=6, ports=(("F0", 4),))


@dataclass(frozen=True)
class Correction:
    """What measurement says of a group of instructions; `None` or 0 leaves LLVM's number."""

    name: re.Pattern[str]
    wide: bool | None
    latency: int
    forward: int
    ports: tuple[tuple[str, int], ...] | None


def _rule(
    name: str, wide: bool | None, latency: int, forward: int = 0, ports: str | None = None
) -> Correction:
    pairs = None
    if ports is not None:
        pairs = tuple((word.split("*")[0], int(word.split("*")[1])) for word in ports.split())
    return Correction(re.compile(f"(?:{name})$"), wide, latency, forward, pairs)


CORRECTIONS: tuple[Correction, ...] = (
    _rule("fml[as]", True, 7, 3, "V*2"),
    _rule("fml[as]|fn?m(add|sub)|frecps|frsqrts", False, 7, 3, "V*1"),
    _rule("frecps|frsqrts", True, 7, 0, "V*2"),
    _rule("fadd|fsub|fmul|fnmul|fabd|fmulx", True, 4, 0, "V*2"),
    _rule("fadd|fsub|fmul|fnmul|fabd|fmulx", False, 4, 0, "V*1"),
    _rule("f(max|min)(nm)?p?|fabs|fneg|fcm(eq|ge|gt|le|lt)|fac(ge|gt)", None, 3, 0, "V*1"),
    _rule("f(max|min)(nm)?v", None, 6, 0, "V*2"),
    _rule("faddp", True, 7, 0, "V*3"),
    _rule("[su]cvtf|fcvt[amnpz][su]|frint.*|frecpe|frsqrte", True, 3, 0, "F0*2"),
    _rule("frecpe|frsqrte", False, 3, 0, "F0*1"),
    _rule("fcvtl2?|fcvtn2?", None, 7, 0, "F0*2"),
    _rule("[su]mull2?|sqdmull2?", None, 4, 0, "F0*1"),
    _rule("[su]ml[as]l2?", None, 4, 1, "F0*1"),
    _rule("sqdml[as]l2?", None, 4, 2, "F0*1"),
    _rule("mul|sqr?dmulh", True, 4, 0, "F0*2"),
    _rule("ml[as]", True, 4, 2, "F0*2"),
    # Measured at one a cycle. That it shares the multiplier's pipeline is inferred: kernels of
    # SMULL, SMLAL and SADALP (mobilenet_int8) come out 8 % faster than published otherwise.
    _rule("[su]adalp", None, 4, 1, "F0*1"),
)
