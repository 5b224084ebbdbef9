# SPDX-License-Identifier: Apache-2.0
"""The runtime as the one file that a bundle carries: `runtime/network.py` with all it stands on.

A device has no tvmattend to import the modules from, and one file is easily copied into an
application. The modules are joined as they are: imports first, then each body in its order.
"""

import ast
from pathlib import Path

from tvmattend.runtime import network

WRAPPER = "tvmattend_runtime.py"
# Each after those that it imports.
MODULES = (
    "faults", "tensors", "manifest_fields", "contents", "process", "executors", "images", "network",
)  # fmt: skip

_HOME = Path(network.__file__).parent
_LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"


def wrapper_source() -> str:
    """Give the text of `tvmattend_runtime.py`.

    Raises:
        ValueError: A module imports something of tvmattend that does not come before it, or has
            code above its imports: a slip of whoever changed it.
    """
    imports: dict[str, set[str]] = {}  # module -> what is imported of it; "" for the module itself
    bodies, done = [], set[str]()
    for name in MODULES:
        text = (_HOME / f"{name}.py").read_text(encoding="utf-8")
        docstring, *statements = ast.parse(text).body
        heads = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
        if statements[: len(heads)] != heads:
            raise ValueError(f"runtime/{name}.py has code above an import")
        for module, wanted in map(_imported, heads):
            if not module.startswith("tvmattend"):
                imports.setdefault(module, set()).update(wanted)
            elif module.removeprefix("tvmattend.runtime.") not in done:
                raise ValueError(f"runtime/{name}.py: {module} does not come before it")
        done.add(name)
        end = [docstring, *heads][-1].end_lineno
        body = "\n".join(text.splitlines()[end:]).strip("\n")
        bodies.append(f"\n\n# --- {name}.py {'-' * (89 - len(name))}\n\n{body}\n")
    title = ast.get_docstring(ast.parse(text), clean=False)
    future = f"from __future__ import {', '.join(imports.pop('__future__'))}"
    plain = sorted(line for module in imports for line in _lines(module, imports[module]))
    ours = sorted(line for line in plain if "numpy" in line)
    theirs = sorted(set(plain) - set(ours), key=lambda line: (line.startswith("from"), line))
    head = [_LICENCE + f'"""{title}"""', "", future, "", *theirs, "", *ours]
    return "\n".join([*head, *bodies])


def _imported(node: ast.Import | ast.ImportFrom) -> tuple[str, list[str]]:
    """Give the module and the names of one import; for `import x as y` the name ` as y`."""
    if isinstance(node, ast.ImportFrom):
        return node.module or "", [alias.name for alias in node.names]
    (alias,) = node.names
    return alias.name, [f" as {alias.asname}" if alias.asname else ""]


def _lines(module: str, names: set[str]) -> list[str]:
    """Write the imports of one module."""
    whole = sorted(name for name in names if not name or name.startswith(" "))
    parts = sorted(names - set(whole))
    lines = [f"import {module}{name}" for name in whole]
    return lines + ([f"from {module} import {', '.join(parts)}"] if parts else [])
