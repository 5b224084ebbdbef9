# SPDX-License-Identifier: Apache-2.0
"""What a build leaves behind when TVM fails or the user stops it, and how large its result is."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import tvm
from tvm import relax

from tvmattend.cli.main import main
from tvmattend.codegen import build
from tvmattend.errors import CompileError, compiling
from tvmattend.models import lookup, parameters
from tvmattend.target import parse_target

FORMATS = ["vm", "standalone"]
REASON = "LLVM ERROR: Cannot select: t7: v4f32 = fmaxnum t5, t6"


def break_compiler(monkeypatch: pytest.MonkeyPatch, kind: str, error: BaseException) -> list[str]:
    """Let TVM's own code generation raise; what is returned fills when it was reached."""
    reached: list[str] = []

    def fail(*_: object, **__: object) -> None:
        reached.append(kind)
        raise error

    if kind == "vm":
        monkeypatch.setattr(relax, "build", fail)
    else:
        # By name, as the package has a function of the module's name.
        import_module("tvmattend.standalone.emit")
        monkeypatch.setattr(sys.modules["tvmattend.standalone.emit"], "generate", fail)
    return reached


def tiny(kind: str) -> list[str]:
    return ["build", "--model", "attendnext_tiny", "--target", "host", "--format", kind]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to build in; the work files of a build lie beside its output."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", FORMATS)
def test_a_build_that_is_interrupted_leaves_nothing(kind, place, monkeypatch, capsys):
    reached = break_compiler(monkeypatch, kind, KeyboardInterrupt())
    with pytest.raises(SystemExit) as leave:
        main(tiny(kind))
    assert reached == [kind]
    assert leave.value.code == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "interrupted"
    assert captured.out == ""
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "error",
    [RuntimeError, tvm.error.InternalError, ValueError, IndexError, TypeError],
)
def test_a_compiler_that_fails_is_an_error_of_ours(kind, error, place, monkeypatch, capsys):
    reached = break_compiler(monkeypatch, kind, error(f"in 40 frames of C++\n{REASON}\n\n"))
    with pytest.raises(SystemExit) as leave:
        main(tiny(kind))
    assert reached == [kind]
    assert leave.value.code == CompileError.exit_code == 18
    said, hint = capsys.readouterr().err.splitlines()[-2:]
    assert said.startswith("error: TVM could not compile the ")
    assert said.endswith(f": {REASON}")
    assert "--debug" in hint
    assert list(place.iterdir()) == []


def test_a_list_at_the_end_is_told_by_the_line_ahead_of_it():
    said = "it: no such shapes:$"
    with pytest.raises(CompileError, match=said), compiling("it", "look"):
        raise RuntimeError("a trace\nno such shapes:\n- (1, 2)\n  - (3,)\n")
    with pytest.raises(CompileError, match=r"it: - \(3,\)$"), compiling("it", "look"):
        raise RuntimeError("- (1, 2)\n- (3,)")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_fault_of_ours_is_not_called_the_compilers(kind, place, monkeypatch):
    break_compiler(monkeypatch, kind, AttributeError("a slip"))
    with pytest.raises(AttributeError, match="a slip"):
        build("attendnext_tiny", parse_target("host"), output=place / "b", format=kind)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bundle_for_the_board_is_small_beside_its_weights(kind, place):
    bundle = build(
        "attendnext_tiny", parse_target("cortex-a72"), output=place / "b", format=kind
    ).directory
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    weights = 4 * parameters(lookup("attendnext_tiny"))
    assert size > weights
    assert size - weights < 10e6
