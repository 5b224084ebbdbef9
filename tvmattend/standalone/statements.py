# SPDX-License-Identifier: Apache-2.0
"""Looking at TIR statements and rebuilding them: what the wheel's Python has no visitors for."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

# As TVM: what is smaller lives on the stack. Register blocks (vectors, scope `local`) do anyway:
# LLVM promotes them only from there.
_STACK_BYTES = 1024
_REGISTER_BYTES = 16384
# Where expressions hold others: operations, conversions, vectors, selects, bindings.
_PARTS = ("a", "b", "value", "base", "condition", "true_value", "false_value", "body")


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
    return map_children(statement, lambda child: hoist(child, private))


def map_children(statement: Any, change: Callable[[Any], Any]) -> Any:
    """The same statement with each of the statements in it changed."""
    from tvm import tirx

    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([change(item) for item in statement.seq])
    if isinstance(statement, tirx.For):
        return tirx.For(
            statement.loop_var,
            statement.min,
            statement.extent,
            statement.kind,
            change(statement.body),
            statement.thread_binding,
            statement.annotations,
            statement.step,
        )
    if isinstance(statement, tirx.AttrStmt):
        body = change(statement.body)
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    if isinstance(statement, tirx.IfThenElse):
        other = statement.else_case
        return tirx.IfThenElse(
            statement.condition,
            change(statement.then_case),
            None if other is None else change(other),
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
    for child in children(statement):
        found.extend(walk(child))
    return found


def children(statement: Any) -> list[Any]:
    """The statements of which a statement is made."""
    found = [*getattr(statement, "seq", ())]
    for name in ("body", "then_case", "else_case"):
        child = getattr(statement, name, None)
        if child is not None:
            found.append(child)
    return found


def loads(statement: Any) -> list[Any]:
    """The loads of buffers in what a statement and all below it store."""
    from tvm.tirx import BufferStore

    found = []
    waiting = [node.value for node in walk(statement) if isinstance(node, BufferStore)]
    while waiting:
        expression = waiting.pop()
        if hasattr(expression, "indices"):
            found.append(expression)
        parts = [getattr(expression, name, None) for name in _PARTS]
        waiting += [part for part in parts if part is not None]
        waiting += [*getattr(expression, "args", ()), *getattr(expression, "indices", ())]
    return found


def with_views(func: Any, buffers: Iterable[Any]) -> set[Any]:
    """Buffers of a PrimFunc, and the views of them."""
    found = set(buffers)
    for view, buffer in _views(walk(func.body)).items():
        if buffer in found:
            found.add(view)
    return found


def _views(nodes: list[Any]) -> dict[Any, Any]:
    """Views of buffers, in the order of their statements, each with the one under it."""
    from tvm.tirx import DeclBuffer

    return {
        node.buffer: next(iter(uses(node.data))) for node in nodes if isinstance(node, DeclBuffer)
    }


def stored(statements: list[Any]) -> set[Any]:
    """Buffers that are written, directly or through a view; of a view, the one under it."""
    from tvm.tirx import BufferStore

    nodes = [node for statement in statements for node in walk(statement)]
    under = _views(nodes)
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
