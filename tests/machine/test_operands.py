# SPDX-License-Identifier: Apache-2.0
"""Registers read and written, from assembly."""

import pytest

from tvmattend.machine.operands import FLAGS, SP, VECTOR, operands_of


def v(*numbers: int) -> tuple[int, ...]:
    return tuple(VECTOR + number for number in numbers)


@pytest.mark.parametrize(
    ("text", "kind", "reads", "writes", "base", "accumulator"),
    [
        ("add\tx0, x1, x2", "alu", (1, 2), (0,), -1, -1),
        ("fmla\tv0.4s, v1.4s, v2.s[3]", "alu", v(1, 2), v(0), -1, VECTOR),
        ("smlal2\tv5.8h, v6.16b, v7.16b", "alu", v(6, 7), v(5), -1, VECTOR + 5),
        ("fadd\tv0.4s, v0.4s, v1.4s", "alu", v(0, 1), v(0), -1, -1),
        ("subs\tw4, w4, #1", "alu", (4,), (4, FLAGS), -1, -1),
        ("cmp\tx1, x2", "alu", (1, 2), (FLAGS,), -1, -1),
        ("csel\tx0, x1, x2, eq", "alu", (1, 2, FLAGS), (0,), -1, -1),
        ("mov\tv0.16b, v1.16b", "alu", v(1), v(0), -1, -1),
        ("xtn2\tv0.8h, v1.4s", "alu", v(1, 0), v(0), -1, -1),
        ("ldr\tq0, [x1], #16", "load", (1,), v(0), 1, -1),
        ("ldr\tx0, [sp, #8]", "load", (SP,), (0,), -1, -1),
        ("ldr\tq1, [x2, #16]!", "load", (2,), v(1), 2, -1),
        ("ldp\tq0, q1, [x2]", "load", (2,), v(0, 1), -1, -1),
        ("ld1\t{ v0.4s, v1.4s }, [x3], #32", "load", (3,), v(0, 1), 3, -1),
        ("ld1\t{ v0.s }[1], [x3]", "load", (3, VECTOR), v(0), -1, -1),
        ("str\tx0, [x1, x2, lsl #3]", "store", (0, 1, 2), (), -1, -1),
        ("st1\t{ v0.4s, v1.4s }, [x3], #32", "store", (*v(0, 1), 3), (), 3, -1),
        ("stp\tq0, q1, [x2, #-32]!", "store", (*v(0, 1), 2), (), 2, -1),
        ("b.ne\t#-16", "branch", (FLAGS,), (), -1, -1),
        ("cbz\tx3, #8", "branch", (3,), (), -1, -1),
        ("bl\t#64", "branch", (), (30,), -1, -1),
        ("prfm\tpldl1keep, [x1, #512]", "prefetch", (1,), (), -1, -1),
        ("nop", "alu", (), (), -1, -1),
    ],
)
def test_registers(text, kind, reads, writes, base, accumulator):
    found = operands_of(text)
    assert (found.kind, found.reads, found.writes) == (kind, reads, writes)
    assert (found.base, found.accumulator) == (base, accumulator)


def test_an_insert_keeps_the_other_lanes_and_a_zero_register_is_none():
    assert VECTOR in operands_of("mov\tv0.s[1], w3").reads
    assert operands_of("add\tx0, xzr, x1").reads == (1,)
