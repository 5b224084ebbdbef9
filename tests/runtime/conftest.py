# SPDX-License-Identifier: Apache-2.0
"""A compiled sample, and a fresh bundle of it for each test to damage."""

import shutil
from pathlib import Path

import pytest
from sample_bundles import host_contents

from tvmattend.bundle import BundleContents, write_bundle


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory) -> BundleContents:
    return host_contents(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def sound_bundle(contents: BundleContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "sample", contents)


@pytest.fixture
def bundle(sound_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_bundle, tmp_path / "sample"))
