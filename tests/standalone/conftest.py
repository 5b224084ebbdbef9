# SPDX-License-Identifier: Apache-2.0
"""The smallest network of the family, compiled once: as a C library for the tests' own program."""

import shutil
from pathlib import Path

import pytest
from c_networks import DRIVER, WRAP, Built, build, run

from tvmattend.frontend import ImportedModel, import_model
from tvmattend.target import host_target, parse_target


@pytest.fixture(scope="session")
def imported() -> ImportedModel:
    return import_model("attendnext_tiny")


@pytest.fixture(scope="session")
def tiny(imported: ImportedModel, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """For this machine, under the name `network`."""
    place = tmp_path_factory.mktemp("tiny")
    return build(imported, host_target(threads=2), place, name="network")


@pytest.fixture(scope="session")
def tiny_a72(imported: ImportedModel, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """For a Cortex-A72 with musl, under the name `network`."""
    place = tmp_path_factory.mktemp("tiny-a72")
    return build(imported, parse_target("cortex-a72"), place, name="network", libc="musl")


@pytest.fixture(scope="session")
def gcc() -> str:
    """The host's compiler: the sanitizers are its."""
    found = shutil.which("gcc")
    assert found, "install gcc (Debian: `apt-get install gcc libc6-dev`)"
    return found


@pytest.fixture(scope="session")
def driver(tiny: Built, gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' program, linked with the static library."""
    program = tmp_path_factory.mktemp("driver") / "driver"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-DCOUNT_ALLOCATIONS", *WRAP]
    sources = [DRIVER, f"-I{tiny.files.header.parent}", tiny.files.static]
    run([gcc, *flags, *sources, "-lm", "-lpthread", "-o", program])
    return program
