# SPDX-License-Identifier: Apache-2.0
"""Looking at TIR statements and rebuilding them: what the wheel's Python has no visitors for."""

import math
from typing import Any

import numpy as np

# As TVM: what is smaller lives on the stack. Register blocks (vectors, scope `local`) do anyway:
# LLVM promotes them only from there.
_STACK_BYTES = 1024
_REGISTER_BYTES = 16384


def hoist(statement: Any, private: list[Any]) -> Any:
    """Take the allocations that do not fit the stack out of a statement."""
    from tvm import tirx

    if isinstance(statement, tirx.SeqStmt):
        kept = []
        for item in flatten(statement):
            if isinstance(item, tirx.AllocBuffer) and not on_stack(item.buffer):
                private.append(item.buffer)
            else:
                kept.append(hoist(item, private))
        return tirx.SeqStmt(kept) if len(kept) > 1 else kept[0]
    if isinstance(statement, tirx.For):
        return tirx.For(
            statement.loop_var,
            statement.min,
            statement.extent,
            statement.kind,
            hoist(statement.body, private),
            statement.thread_binding,
            statement.annotations,
            statement.step,
        )
    if isinstance(statement, tirx.AttrStmt):
        body = hoist(statement.body, private)
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    if isinstance(statement, tirx.IfThenElse):
        other = statement.else_case
        return tirx.IfThenElse(
            statement.condition,
            hoist(statement.then_case, private),
            None if other is None else hoist(other, private),
        )
    return statement


def uses(node: Any) -> set[Any]:
    """The variables that a statement or an expression uses without defining them."""
    from tvm.tirx import Evaluate, Stmt
    from tvm.tirx.analysis import undefined_vars

    return set(undefined_vars(node if isinstance(node, Stmt) else Evaluate(node), []))


def flatten(statement: Any) -> list[Any]:
    """The statements of a sequence, or of sequences in it, one by one."""
    from tvm.tirx import SeqStmt

    if isinstance(statement, SeqStmt):
        return [inner for item in statement.seq for inner in flatten(item)]
    return [statement]


def walk(statement: Any) -> list[Any]:
    """The statement and all below it."""
    found = [statement]
    children = [*getattr(statement, "seq", ())]
    for name in ("body", "then_case", "else_case"):
        child = getattr(statement, name, None)
        if child is not None:
            children.append(child)
    for child in children:
        found.extend(walk(child))
    return found


def stored(statements: list[Any]) -> set[Any]:
    """Buffers that are written, directly or through a view; of a view, the one under it."""
    from tvm.tirx import BufferStore, DeclBuffer

    nodes = [node for statement in statements for node in walk(statement)]
    under = {
        node.buffer: next(iter(uses(node.data))) for node in nodes if isinstance(node, DeclBuffer)
    }
    found = set()
    for node in nodes:
        if isinstance(node, BufferStore):
            buffer = node.buffer
            while buffer in under:
                buffer = under[buffer]
            found.add(buffer)
    return found


def parallel(group: list[Any]) -> bool:
    """Whether these statements are one parallel loop."""
    from tvm.tirx import For, ForKind

    return len(group) == 1 and isinstance(group[0], For) and group[0].kind == ForKind.PARALLEL


def on_stack(buffer: Any) -> bool:
    """Whether an allocation stays where it is, on the stack."""
    registers = buffer.scope() == "local" or "x" in str(buffer.dtype)
    return size_of(buffer) < (_REGISTER_BYTES if registers else _STACK_BYTES)


def size_of(buffer: Any) -> int:
    """Size of a buffer, in bytes; its elements may be vectors (`float32x16`)."""
    base, _, lanes = str(buffer.dtype).partition("x")
    return math.prod(int(e) for e in buffer.shape) * np.dtype(base).itemsize * int(lanes or 1)
