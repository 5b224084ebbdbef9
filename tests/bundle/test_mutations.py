# SPDX-License-Identifier: Apache-2.0
"""Whatever is damaged, however: an error of ours, or an answer; no crash, no hang, no foreign code.

`mutation_cases.py` does the cases, in processes that this file watches. The long version is
`pytest -m long tests/bundle/test_mutations.py`: 10,000 of each kind.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from canary import PYTHON_CANARY, VARIABLE, canary_bytes

import tvmattend
from tvmattend.tuning.records import shipped_root

KINDS = ("manifest", "files", "forged", "signature", "records", "target")
SEED = 6
_TESTS = Path(__file__).resolve().parents[1]
# A process that is not done by then hangs: so long, and that much for each case.
_START_SECONDS, _CASE_SECONDS = 120, 2
# Of one process: TVM keeps every library that it has loaded.
_BATCH = 1000


@pytest.fixture(scope="module")
def place(signed_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound bundles of both formats, signed; records; and canaries, also of Python."""
    place = tmp_path_factory.mktemp("mutations")
    for kind in ("vm", "standalone"):
        shutil.copytree(signed_tiny / kind, place / kind)
    shutil.copy(signed_tiny / "key.pub", place)
    (place / "canary.so").write_bytes(canary_bytes())
    (place / "canary.py").write_text(PYTHON_CANARY)
    root = shipped_root()
    assert root is not None
    lines = [
        line
        for path in sorted(root.rglob("*.jsonl"))
        for line in path.read_text().splitlines(keepends=True)[:20]
    ]
    (place / "sound.jsonl").write_text("".join(lines))
    return place


def run(kind: str, place: Path, first: int, count: int) -> str:
    """Do some cases in a process of their own; give the sums."""
    environment = {
        **os.environ,
        VARIABLE: str(place / "canary-was-loaded"),
        "PYTHONPATH": os.pathsep.join([str(_TESTS), str(Path(tvmattend.__file__).parents[1])]),
    }
    words = [kind, SEED, first, count, place]
    with subprocess.Popen(
        [sys.executable, str(_TESTS / "mutation_cases.py"), *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            said, errors = process.communicate(timeout=_START_SECONDS + _CASE_SECONDS * count)
        except subprocess.TimeoutExpired:
            process.kill()
            said, errors = process.communicate()
            pytest.fail(f"hangs: {said[-300:]}")
    finds = said[said.find("FIND") :] if "FIND" in said else said[-300:]
    assert process.returncode == 0, f"{process.returncode}: {finds[:4000]}\n{errors[-2000:]}"
    assert f"case {first + count - 1}\n" in said
    return said.splitlines()[-1]


def check(kind: str, place: Path, count: int) -> None:
    for first in range(0, count, _BATCH):
        sums = run(kind, place, first, min(_BATCH, count - first))
        sys.stdout.write(f"{kind} {first}: {sums}\n")
        # Else the dice are loaded: whole kinds of damage would go untested.
        assert sums.count('["') >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_damage_by_dice(kind: str, place: Path) -> None:
    check(kind, place, 150)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_by_dice_ten_thousand_times(kind: str, place: Path) -> None:
    check(kind, place, 10_000)


def test_the_canaries_sing(place: Path) -> None:
    """What the cases rest on: either of them is noticed as soon as it is loaded."""
    for name, load in (
        ("canary.so", "ctypes.CDLL(path)"),
        ("canary.py", "exec(open(path).read())"),
    ):
        trace = place / "control"
        program = f"import ctypes, sys; path = sys.argv[1]; {load}"
        subprocess.run(
            [sys.executable, "-c", program, place / name],
            env={**os.environ, VARIABLE: str(trace)}, check=True,
        )  # fmt: skip
        assert trace.exists()
        trace.unlink()
