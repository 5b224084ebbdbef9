# SPDX-License-Identifier: Apache-2.0
"""CONTRIBUTING.md's table of rooms, held to be true by walking the imports."""

import ast
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tvmattend.bundle.wrapper import MODULES

ROOT = Path(__file__).resolve().parents[1]
SERVING = "tvmattend/device/serving/"
# Run on devices, out of a bundle, where tvmattend is not installed.
SHIPPED = {
    **{
        f"tvmattend/runtime/{name}.py": {"numpy", "tvm_ffi", "PIL", "tvmattend"}
        for name in MODULES  # joined into one file
    },
    "tvmattend/runtime/standalone.py": {"numpy"},
    "tvmattend/runtime/signature.py": {"cryptography"},
}
ANYTHING = "anything"


def read_table(text: str) -> dict[str, tuple[str, ...]]:
    """Path of a file or folder (which ends in `/`) -> what it may import."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("| `") or len(cells) != 3:
            continue
        grants = () if cells[2] == "-" else tuple(name.strip() for name in cells[2].split(","))
        for name in grants:
            assert re.fullmatch(r"\w+(\.\w+)*", name), f"cannot read {name!r} in: {line}"
        assert ANYTHING not in grants or len(grants) == 1, line
        rows[cells[0].strip("`")] = grants
    return rows


TABLE = read_table((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
# errors, target and the like: for every room but those that stand alone.
OPEN = [row for row in TABLE if re.fullmatch(r"tvmattend/[a-z]\w*\.py", row)]
CLOSED = {"schedules/", SERVING, "tvmattend/__init__.py", "tvmattend/__main__.py"}
VERSION = {"tvmattend", "tvmattend.__version__"}
FILES = sorted(
    str(path.relative_to(ROOT).as_posix())
    for folder in ("tvmattend", "schedules")
    for path in (ROOT / folder).rglob("*.py")
)


def row_of(file: str) -> str | None:
    """The row that a file belongs to: the longest that matches."""
    fitting = [row for row in TABLE if row == file or (row.endswith("/") and file.startswith(row))]
    return max(fitting, key=len, default=None)


def imports(tree: ast.AST) -> Iterator[str]:
    """Everything that is imported anywhere: `from a.b import c` gives `a.b.c`.

    A relative import keeps its dots.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            # `import_module("a.b")`, `importlib.import_module("a.b")`, `__import__("a.b")`
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = getattr(node.args[0], "value", None)
            if called in {"import_module", "__import__"} and isinstance(name, str):
                yield name


def imports_of(file: str) -> set[str]:
    return set(imports(ast.parse((ROOT / file).read_text(encoding="utf-8"))))


def own_room(row: str) -> str:
    """The modules that a row's files may import because they are theirs, e.g. `runtime`."""
    path = Path(row)
    if row.endswith(".py") and path.parent != Path("tvmattend"):
        path = path.parent
    return ".".join(path.with_suffix("").parts).removeprefix("tvmattend.")


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {"tvmattend", "schedules"}


def covers(name: str, module: str) -> bool:
    """Whether a name of the table's last column stands for an imported module."""
    return f"{module.removeprefix('tvmattend.')}.".startswith(f"{name}.")


def strangers(row: str, grants: tuple[str, ...], modules: set[str]) -> list[str]:
    """What a file of a row imports of ours although the row does not name it."""
    if grants == (ANYTHING,):
        return []
    allowed = [*grants, own_room(row)]
    if row not in OPEN and row not in CLOSED:
        allowed += [Path(name).stem for name in OPEN]
        modules = modules - VERSION
    return sorted(
        module
        for module in modules
        if is_ours(module) and not any(covers(name, module) for name in allowed)
    )


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_row_names(file):
    row = row_of(file)
    assert row, f"CONTRIBUTING.md's table has no room for {file}"
    assert not strangers(row, TABLE[row], imports_of(file)), f"against the row of {row}"


@pytest.mark.parametrize("file", FILES)
def test_no_relative_imports_but_in_the_server(file):
    """The server's package is `serving` where it runs, so it cannot name itself in full."""
    relative = {module for module in imports_of(file) if module.startswith(".")}
    if file.startswith(SERVING):
        assert not any(module.startswith("..") for module in relative)
        assert not any(is_ours(module) for module in imports_of(file))
    else:
        assert not relative


@pytest.mark.parametrize("row", [row for row in TABLE if TABLE[row] != (ANYTHING,)])
def test_what_a_row_names_is_in_use(row):
    used = {module for file in FILES if row_of(file) == row for module in imports_of(file)}
    idle = [name for name in TABLE[row] if not any(covers(name, module) for module in used)]
    assert not idle, f"{row} names {idle} and imports none of it"


def test_every_row_is_of_something_that_exists_and_every_room_has_one():
    assert [row for row in TABLE if not (ROOT / row).exists()] == []
    rooms = {
        f"tvmattend/{path.parent.name}/" for path in (ROOT / "tvmattend").glob("*/__init__.py")
    }
    assert rooms <= set(TABLE)


def test_the_schedules_know_nothing_of_the_package():
    assert TABLE["schedules/"] == ()


def test_no_modules_import_each_other_in_a_circle():
    names = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES
    }
    graph = {
        name: {
            found
            for module in imports_of(file)
            if (found := module if module in names else module.rpartition(".")[0]) in names
            and found != name
        }
        for name, file in names.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(names)


@pytest.mark.parametrize(
    ("row", "grants", "code", "found"),
    [
        ("tvmattend/models/", (), "from tvmattend.models.layers import Stem", []),
        ("tvmattend/models/", (), "from tvmattend import errors, __version__", []),
        ("tvmattend/models/", (), "import torch, tvmattend.bench", ["tvmattend.bench"]),
        ("tvmattend/models/", (), "def f():\n from tvmattend import cli", ["tvmattend.cli"]),
        ("tvmattend/models/", (), "import_module('tvmattend.cli')", ["tvmattend.cli"]),
        ("tvmattend/models/", (), "from tvmattend import build", ["tvmattend.build"]),
        ("tvmattend/device/", ("codegen.link",), "from tvmattend.codegen import link", []),
        (
            "tvmattend/device/",
            ("codegen.link",),
            "from tvmattend.codegen.linker import x",
            ["tvmattend.codegen.linker.x"],
        ),
        ("tvmattend/runtime/remote.py", (), "from tvmattend.runtime.network import load", []),
        ("tvmattend/target.py", ("errors",), "from tvmattend.errors import TargetError", []),
        ("tvmattend/target.py", ("errors",), "import tvmattend.cache", ["tvmattend.cache"]),
        ("schedules/", (), "from tvmattend.target import x", ["tvmattend.target.x"]),
        ("schedules/", (), "from tvmattend import __version__", ["tvmattend.__version__"]),
        (SERVING, (), "from tvmattend.errors import x", ["tvmattend.errors.x"]),
        ("tvmattend/cli/", (ANYTHING,), "import tvmattend.bench", []),
    ],
)
def test_what_breaks_a_rule_is_noticed(row, grants, code, found):
    assert strangers(row, grants, set(imports(ast.parse(code)))) == found


def test_the_table_is_read_as_it_is_meant():
    text = "| room | holds | may import |\n|---|---|---|\n| `a/` | x | - |\n| `b.py` | y | c, d.e |"
    assert read_table(text) == {"a/": (), "b.py": ("c", "d.e")}
    for cell in ("c and d", "c, anything", ""):
        with pytest.raises(AssertionError):
            read_table(f"| `a/` | x | {cell} |")


@pytest.mark.parametrize("file", SHIPPED)
def test_a_file_that_ships_needs_what_a_device_has(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    standard = set(sys.stdlib_module_names)
    used = {module.split(".")[0] for module in imports(tree)}
    assert used - standard <= SHIPPED[file]
    # Pillow is for those who pass images, cryptography for those who require a signature; tvm_ffi's
    # absence has an error of its own.
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {module.split(".")[0] for module in imports(tree)} - standard <= {"numpy", "tvmattend"}


@pytest.mark.parametrize(
    "command", [["--help"], ["models"], ["build", "--help"], ["tune", "--help"]]
)
def test_the_command_line_starts_without_heavy_imports(command):
    program = (
        "import sys\n"
        "from tvmattend.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as leave:\n"
        "    heavy = {'torch', 'tvm', 'onnx', 'xgboost', 'numpy'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy or leave.code else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_help_is_there_at_once():
    """Cold, as a user meets it.

    The target is 0.3 s on a quiet machine, where it takes 0.05. Those that test are busy with
    other things, and a limit that they miss now and then would be ignored soon: here it is three
    times that. What keeps the start fast is the test of its imports above.
    """

    def seconds():
        start = time.perf_counter()
        command = [sys.executable, "-m", "tvmattend", "--help"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.startswith("Usage: tvmattend")
        return time.perf_counter() - start

    assert statistics.median(seconds() for _ in range(5)) < 1.0
