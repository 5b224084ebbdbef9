# SPDX-License-Identifier: Apache-2.0
"""The build hook: a wheel from a git checkout names its commit, and the checkout stays clean."""

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

HOOK = Path(__file__).parents[2] / "hatch_build.py"
STAMP = "tvmattend/_revision.txt"
PROJECT = """
[project]
name = "tvmattend"
version = "1"
[tool.hatch.build]
dev-mode-dirs = ["."]
[tool.hatch.build.hooks.custom]
path = "hatch_build.py"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of the same layout."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    place = tmp_path / "checkout"
    (place / "tvmattend").mkdir(parents=True)
    (place / "tvmattend" / "__init__.py").touch()
    (place / "pyproject.toml").write_text(PROJECT)
    shutil.copy(HOOK, place)
    return place


def git(place: Path, *arguments: str) -> str:
    names = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    command = ["git", "-C", str(place), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(place: Path) -> str:
    git(place, "init", "--quiet")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "--message", "all")
    return git(place, "rev-parse", "HEAD")


def wheel_stamp(place: Path, version: str = "standard") -> str | None:
    (wheel,) = WheelBuilder(str(place)).build(
        directory=str(place.parent / "dist"), versions=[version]
    )
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(STAMP).decode() if STAMP in archive.namelist() else None


def test_a_wheel_names_its_commit_and_leaves_the_checkout_clean(project: Path) -> None:
    revision = commit(project)
    assert wheel_stamp(project) == revision + "\n"
    assert git(project, "status", "--porcelain", "--ignored") == ""
    assert not list(project.parent.glob("tvmattend-revision-*"))
    (project / "tvmattend" / "__init__.py").write_text("changed = 1\n")
    assert wheel_stamp(project) == revision + "-dirty\n"


def test_a_wheel_from_a_source_distribution_still_knows(project: Path) -> None:
    revision = commit(project)
    (source,) = SdistBuilder(str(project)).build(directory=str(project.parent / "dist"))
    with tarfile.open(source) as archive:
        # Debian 12's CPython 3.11.2 has no `filter=` yet, and later ones warn without one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(project.parent / "unpacked")  # noqa: S202  (made two lines above)
    assert wheel_stamp(project.parent / "unpacked" / "tvmattend-1") == revision + "\n"


def test_without_a_repository_there_is_no_stamp(project: Path) -> None:
    assert wheel_stamp(project) is None


def test_without_git_there_is_no_stamp(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(project)
    monkeypatch.setenv("PATH", str(project))
    assert wheel_stamp(project) is None


def test_an_editable_installation_asks_git_itself(project: Path) -> None:
    commit(project)
    assert wheel_stamp(project, "editable") is None
