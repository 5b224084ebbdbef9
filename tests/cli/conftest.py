# SPDX-License-Identifier: Apache-2.0
"""Bundles of a small network, for the commands that take one."""

import shutil
from pathlib import Path

import pytest
from sample_bundles import host_contents

from tvmattend.bundle import write_bundle


@pytest.fixture(scope="session")
def sound_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    contents = host_contents(tmp_path_factory.mktemp("sample"))
    return write_bundle(tmp_path_factory.mktemp("bundles") / "sample", contents)


@pytest.fixture
def bundle(sound_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_bundle, tmp_path / "sample"))
