# SPDX-License-Identifier: Apache-2.0
"""Which registers an AArch64 instruction reads and writes, from its assembly text.

Only what the pipeline model needs: dependencies through registers and flags. The rules follow the
Arm Architecture Reference Manual, C6 and C7; text is as `llvm-mc` prints it.
"""

import re
from dataclasses import dataclass

# Numbers of the pipeline model: x0-x30, sp, v0-v31, the flags.
SP = 31
VECTOR = 32
FLAGS = 64
REGISTERS = 65

_REGISTER = re.compile(r"\b(?:([xw])(\d+)|([bhsdqv])(\d+)(?:\.|\b)|(w?sp)\b)")

_STORES = re.compile(r"st(r|ur|p|np|lr|llr|[1-4]|xr|xp|lxr|lxp|tr)[bh]?$|st[1-4]$|sttr")
_LOADS = re.compile(r"ld")
# The destination is also a source.
_ACCUMULATES = re.compile(
    r"f(ml[as]|mlal2?|mlsl2?)$|ml[as]$|[su]ml[as]l2?$|sqdml[as]l2?$|sqrdml[as]h$|[su]adalp$"
    r"|[su]aba(l2?)?$|[su]r?sra$"
)
_MERGES = re.compile(
    r"(bsl|bit|bif|sli|sri|ins|movk|bfi|bfxil|bfm|bfc|tbx|pacia.*|autia.*|[su]dot|usdot"
    r"|aes[ed]|sha.*)$"
)
_NARROW_HIGH = re.compile(
    r"(xtn2|sqxtn2|uqxtn2|sqxtun2|r?shrn2|[su]q[r]?shrn2|sqr?shrun2|r?addhn2|r?subhn2|fcvtn2|fcvtxn2)$"
)
_NO_RESULT = re.compile(r"(cmp|cmn|tst|fcmpe?|ccmp|ccmn|fccmpe?)$")
_READS_FLAGS = re.compile(
    r"(b\..*|cs(el|inc|inv|neg|et|etm)|cinc|cinv|cneg|fcsel|adcs?|sbcs?|ngcs?|ccmp|ccmn|fccmpe?)$"
)
_WRITES_FLAGS = re.compile(
    r"(adds|subs|ands|bics|negs|adcs|sbcs|cmp|cmn|tst|ccmp|ccmn|fcmpe?|fccmpe?)$"
)
_BRANCH = re.compile(r"(b|br|bl|blr|ret|cbn?z|tbn?z|b\..*)$")
_PREFETCH = re.compile(r"prfu?m$")


@dataclass(frozen=True)
class Operands:
    """Registers by number.

    Attributes:
        reads: Sources, without `accumulator`.
        writes: Destinations that carry the result.
        base: A base register that is written back, or -1; it is ready a cycle after issue.
        accumulator: A destination that is also the addend, or -1: it may be forwarded late.
        kind: `alu`, `load`, `store`, `branch` or `prefetch`.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    base: int
    accumulator: int
    kind: str


def operands_of(text: str) -> Operands:
    """Read one instruction, e.g. `ldr\\tq0, [x1], #16`."""
    name, _, rest = text.partition("\t")
    name = name.strip()
    kind = _kind(name)
    if kind == "branch":
        writes: tuple[int, ...] = (30,) if name in {"bl", "blr"} else ()
        flags = (FLAGS,) if _READS_FLAGS.match(name) else ()
        return Operands((*_registers(rest), *flags), writes, -1, -1, kind)
    if kind == "prefetch":
        return Operands(tuple(_registers(rest)), (), -1, -1, kind)
    if kind in {"load", "store"}:
        return _memory(name, rest, kind)
    return _arithmetic(name, rest)


def _kind(name: str) -> str:
    if _BRANCH.match(name):
        return "branch"
    if _PREFETCH.match(name):
        return "prefetch"
    if _STORES.match(name):
        return "store"
    if _LOADS.match(name):
        return "load"
    return "alu"


def _registers(text: str) -> list[int]:
    found = []
    for match in _REGISTER.finditer(text):
        if match.group(5):
            found.append(SP)
        elif match.group(1):
            found.append(int(match.group(2)))
        else:
            found.append(VECTOR + int(match.group(4)))
    return found


def _memory(name: str, rest: str, kind: str) -> Operands:
    data, bracket, address = rest.partition("[")
    lane = False
    if "{" in rest:  # `{ v0.s }[3], [x1]`: the first bracket is the lane
        data, brace, address = rest.partition("}")
        lane = address.startswith("[")
        address = address[address.find("[", 1 if lane else 0) :]
        bracket = brace
    if not bracket:  # a literal: `ldr x0, #8`
        return Operands((), tuple(_registers(data)), -1, -1, kind)
    inside, _, after = address.partition("]")
    base = _registers(inside)[:1]
    writeback = base[0] if base and (after.startswith(("!", ","))) else -1
    addresses = tuple(_registers(inside) + _registers(after))
    values = tuple(_registers(data))
    if kind == "store":
        status = values[:1] if name.startswith(("stx", "stlx")) else ()
        return Operands((*values[len(status) :], *addresses), status, writeback, -1, kind)
    return Operands((*addresses, *(values if lane else ())), values, writeback, -1, kind)


def _arithmetic(name: str, rest: str) -> Operands:
    parts = rest.split(",", 1)
    registers = _registers(rest)
    flags_in = (FLAGS,) if _READS_FLAGS.match(name) else ()
    flags_out = (FLAGS,) if _WRITES_FLAGS.match(name) else ()
    if _NO_RESULT.match(name):
        return Operands((*registers, *flags_in), flags_out, -1, -1, "alu")
    first = _registers(parts[0])[:1]
    sources = tuple(_registers(parts[1])) if len(parts) > 1 else ()
    writes = (*first, *flags_out)
    if first and _ACCUMULATES.match(name):
        return Operands((*sources, *flags_in), writes, -1, first[0], "alu")
    # `mov v0.s[1], w0` is an insert; `mov v0.16b, v1.16b` is not.
    inserts = name == "mov" and re.search(r"\.[bhsd]\[", parts[0]) is not None
    if first and (inserts or _MERGES.match(name) or _NARROW_HIGH.match(name)):
        sources = (*sources, first[0])
    return Operands((*sources, *flags_in), writes, -1, -1, "alu")
