# SPDX-License-Identifier: Apache-2.0
"""Who computes and who reads what in a straight-line Relax function."""

from collections.abc import Iterator
from typing import Any

from tvmattend.expressions import op_name


class Dataflow:
    """The bindings of a function whose body is one dataflow block, read once.

    Attributes:
        values: Variable -> the expression that it is bound to, in order.
        output: The variable that the function returns.
    """

    def __init__(self, function: Any) -> None:
        from tvm import relax

        self.values: dict[Any, Any] = {}
        self._readers: dict[Any, list[Any]] = {}
        self._variables: dict[Any, Any] = {}
        for block in function.body.blocks:
            for binding in block.bindings:
                self.values[binding.var] = binding.value
                self._variables[binding.value] = binding.var
                for variable in relax.analysis.free_vars(binding.value):
                    self._readers.setdefault(variable, []).append(binding.var)
        self.output = function.body.body

    def variable(self, value: Any) -> Any:
        """The variable that a value is bound to; a parameter of the function stands for itself."""
        return self._variables.get(value, value)

    def value(self, expression: Any) -> Any:
        """The value behind a variable; any other expression stands for itself."""
        return self.values.get(expression, expression)

    def readers(self, variable: Any) -> list[Any]:
        """Variables whose values read this one; the function's result is not among them."""
        return self._readers.get(variable, [])

    def ancestors(self, variable: Any) -> set[Any]:
        """All variables that a variable is computed from, the function's parameters among them."""
        from tvm import relax

        found: set[Any] = set()
        waiting = [variable]
        while waiting:
            read = relax.analysis.free_vars(self.value(waiting.pop()))
            waiting += [other for other in read if other not in found]
            found.update(read)
        return found

    def is_output(self, variable: Any) -> bool:
        """Whether the function returns the variable, alone or in a tuple."""
        from tvm import relax

        return any(variable.same_as(other) for other in relax.analysis.free_vars(self.output))

    def calls(self, *names: str) -> Iterator[tuple[Any, Any]]:
        """Variable and call of every call of the named operators, in order."""
        for variable, value in self.values.items():
            if op_name(value) in names:
                yield variable, value
