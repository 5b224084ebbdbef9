# SPDX-License-Identifier: Apache-2.0
"""Walk a straight-line Relax function once, in order, and build it again through rules.

A rule sees one call, whose arguments have been rewritten already, and may give another expression
for it. Weights are folded in NumPy at double precision: TVM's own constant folding would compile
a kernel for every shape.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tvm import relax
from tvm.error import InternalError

from tvmattend.errors import ModelError
from tvmattend.expressions import op_name

Rule = Callable[[Any, "Scope"], Any]


class Scope:
    """What a rule may ask about the function that is being built.

    Attributes:
        builder: Where new bindings go.
        paths: Name of a variable that was built -> path of the module that it comes from.
    """

    def __init__(self, function: Any, paths: Mapping[str, str], rename: bool) -> None:
        self.builder = relax.BlockBuilder()
        self.paths: dict[str, str] = {}
        self._old_paths = paths
        self._rename = rename
        self._uses: Counter[Any] = Counter([function.body.body])
        for binding in function.body.blocks[0].bindings:
            _count(binding.value, self._uses)
        self._values: dict[Any, Any] = {}
        self._origins: dict[Any, Any] = {}

    def emit(self, expression: Any, origin: Any = None) -> Any:
        """Bind an expression in the place of the old variable `origin`."""
        path = self._old_paths.get(origin.name, "") if origin is not None else ""
        name = _variable_name(path, expression) if path and self._rename else ""
        variable = self.builder.emit(expression, name)
        self.paths[str(variable.name)] = path
        self._values[variable] = expression
        self._origins[variable] = origin
        return variable

    def value(self, expression: Any) -> Any:
        """Give the call behind a variable, or the expression itself."""
        return self._values.get(expression, expression)

    def origin(self, variable: Any) -> Any:
        """Give the old variable in whose place this one stands."""
        return self._origins.get(variable)

    def used_once(self, variable: Any) -> bool:
        """Whether the old variable behind this one had a single reader."""
        return self._uses[self.origin(variable)] == 1


def rewrite(
    function: Any, rules: Sequence[Rule], paths: Mapping[str, str], *, rename: bool = False
) -> tuple[Any, dict[str, str]]:
    """Build the function again; dead bindings are left for dead code elimination.

    Args:
        function: One dataflow block.
        rules: Tried in order on every call and tuple field; each may replace the expression.
        paths: Name of a variable -> path of the module that it comes from.
        rename: Name the variables after their modules.

    Returns:
        The new function, and the paths under its variables' names.

    Raises:
        ModelError: The function is not one dataflow block, as a network with control flow is not.
    """
    blocks = function.body.blocks
    if not blocks:
        raise ModelError("the network computes nothing", "check what its forward returns")
    if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):
        raise ModelError(
            "the network has control flow that depends on its data",
            "export a network whose forward takes one path for every input",
        )
    scope = Scope(function, paths, rename)
    renamed: dict[Any, Any] = {}
    try:
        with scope.builder.function("main", list(function.params)):
            with scope.builder.dataflow():
                for binding in blocks[0].bindings:
                    value = _apply(rules, _rename(binding.value, renamed), scope)
                    # A name for a variable or tuple is no computation: readers take what it names.
                    named = isinstance(value, relax.Var | relax.Tuple)
                    renamed[binding.var] = value if named else scope.emit(value, binding.var)
                output = scope.builder.emit_output(_rename(function.body.body, renamed))
            scope.builder.emit_func_output(output)
    except Exception:
        end_open_blocks(scope.builder)
        raise
    return scope.builder.get()["main"], scope.paths


def end_open_blocks(builder: Any) -> None:
    """End the blocks that an error has left open; TVM would warn of them on the user's terminal."""
    with suppress(InternalError):  # raised when none is open, which cannot be asked
        while True:
            builder._end_block()  # noqa: SLF001


def parts(expression: Any) -> list[Any]:
    """List the expressions that an expression reads directly."""
    if isinstance(expression, relax.Call):
        return list(expression.args)
    if isinstance(expression, relax.Tuple):
        return list(expression.fields)
    if isinstance(expression, relax.TupleGetItem):
        return [expression.tuple_value]
    return []


def _apply(rules: Sequence[Rule], value: Any, scope: Scope) -> Any:
    for rule in rules:
        if not isinstance(value, relax.Call | relax.TupleGetItem):
            return value
        value = scope.builder.normalize(value)
        replacement = rule(value, scope)
        value = value if replacement is None else replacement
    return value


def _variable_name(path: str, expression: Any) -> str:
    """Name a variable `stem_embed_conv` or `stages_0_0_softmax`."""
    operator = op_name(expression).rpartition(".")[2]
    # A layer's own operator and its bias go by the layer's name alone.
    suffix = "" if operator in {"conv2d", "matmul", "add", ""} else f"_{operator}"
    return re.sub(r"\W", "_", path) + suffix


def _count(expression: Any, uses: Counter[Any]) -> None:
    if isinstance(expression, relax.Var):
        uses[expression] += 1
    for part in parts(expression):
        _count(part, uses)


def _rename(expression: Any, renamed: Mapping[Any, Any]) -> Any:
    if isinstance(expression, relax.Var):
        return renamed.get(expression, expression)
    if isinstance(expression, relax.Call):
        arguments = [_rename(argument, renamed) for argument in expression.args]
        return relax.Call(expression.op, arguments, expression.attrs, expression.ty_args)
    if isinstance(expression, relax.Tuple):
        return relax.Tuple([_rename(item, renamed) for item in expression.fields])
    if isinstance(expression, relax.TupleGetItem):
        source = _rename(expression.tuple_value, renamed)
        if isinstance(source, relax.Tuple):
            return source.fields[expression.index]
        return relax.TupleGetItem(source, expression.index)
    return expression
