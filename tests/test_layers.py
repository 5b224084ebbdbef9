# SPDX-License-Identifier: Apache-2.0
"""CONTRIBUTING.md's table of rooms, held to be true by walking the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "tvm", "onnx", "xgboost"}

# Room -> the rooms of ours that it may import anywhere. `errors`, `target`, `cache` and the
# package itself are open to all but `schedules`.
MAY_IMPORT = {
    "models": set(),
    "frontend": {"models"},
    "transform": {"schedules"},
    "schedules": set(),
    "tuning": {"schedules", "transform", "frontend", "device", "codegen", "machine"},
    "codegen": {
        "schedules",
        "tuning",
        "transform",
        "frontend",
        "bundle",
        "standalone",
        "device",
        "runtime",
    },
    "bundle": {"runtime", "device", "standalone"},
    "runtime": {"bundle", "device", "standalone"},
    "device": {"codegen"},
    "machine": {"device", "codegen", "bundle", "runtime", "tuning", "schedules", "transform"},
    "standalone": {"codegen", "bundle", "runtime", "transform", "tuning", "schedules", "frontend"},
}
OPEN = {"errors", "target", "cache", "__init__"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str | None:
    """Which room of ours a module is of."""
    parts = module.split(".")
    if parts[0] == "schedules":
        return "schedules"
    if parts[0] != "tvmattend":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def files(name: str) -> list[Path]:
    folder = ROOT / "schedules" if name == "schedules" else ROOT / "tvmattend" / name
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(name):
    known = {path.name for path in (ROOT / "tvmattend").iterdir() if path.is_dir()} | {"schedules"}
    for path in files(name):
        for module in imports(path):
            other = room(module)
            if other in known and other != name:
                assert other in MAY_IMPORT[name], f"{path.relative_to(ROOT)} imports {module}"


def test_every_room_is_in_the_table():
    rooms = {
        path.name for path in (ROOT / "tvmattend").iterdir() if (path / "__init__.py").is_file()
    }
    assert rooms - {"cli", "bench"} == set(MAY_IMPORT) - {"schedules"}


def test_the_file_that_ships_imports_nothing_of_ours():
    used = {module.split(".")[0] for module in imports(ROOT / "tvmattend/runtime/network.py")}
    assert not used & {"tvmattend", "schedules", "tvm", "torch"}


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
