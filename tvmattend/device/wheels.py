# SPDX-License-Identifier: Apache-2.0
"""Wheels of another architecture or Python, downloaded by pip and unpacked without running it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tvmattend.errors import StorageError, ToolMissingError
from tvmattend.storage import says_full

_TIMEOUT_SECONDS = 1800
_DOWNLOAD = "check the network and pip's index settings (`pip config list`), and try again"
_GLIBC_MINOR = 28  # of the devices: their C library is 2.28 or later (codegen/link.py)


def download_wheels(
    requirements: Sequence[str],
    destination: Path,
    architecture: str,
    python_version: str,
) -> list[Path]:
    """Download wheels, without their dependencies, for a Linux machine that is not this one.

    Args:
        requirements: As on pip's command line, e.g. `numpy>=2`.
        destination: Directory for the files.
        architecture: `aarch64` or `x86_64`.
        python_version: Of CPython, e.g. `3.11`.

    Returns:
        One path a requirement, in their order.

    Raises:
        ToolMissingError: pip is missing, or a wheel cannot be had.
        StorageError: The disk is full.
    """
    if importlib.util.find_spec("pip") is None:
        raise ToolMissingError(
            f"{sys.executable} has no pip",
            f"`{sys.executable} -m ensurepip`, or `uv pip install pip`",
        )
    destination.mkdir(parents=True, exist_ok=True)
    # pip compares tags one by one; a newer C library also runs what was built for older ones.
    tags = [f"manylinux_2_{minor}_{architecture}" for minor in range(_GLIBC_MINOR, 16, -1)]
    tags += [f"manylinux2014_{architecture}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    command += [word for tag in tags for word in ("--platform", tag)]
    command += ["--dest", str(destination), *requirements]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    # pip downloads to $TMPDIR first, which may be a small memory disk.
    environment["TMPDIR"] = str(destination.absolute())
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolMissingError(
            f"`pip download` took more than {_TIMEOUT_SECONDS} s", "check the network"
        ) from error
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else done.stderr[-200:].strip()
        if says_full(done.stderr):
            raise StorageError(
                f"pip ran out of space in {destination}: {reason}",
                "free some space there, or set TVMATTEND_CACHE to a directory elsewhere",
            )
        raise ToolMissingError(
            f"pip cannot download wheels for {architecture} and Python {python_version}: {reason}",
            _DOWNLOAD,
        )
    return [_find(destination, requirement) for requirement in requirements]


def install_wheels(
    requirements: Sequence[str],
    destination: Path,
    architecture: str,
    python_version: str,
    leave_out: str = r"\Z.",
) -> None:
    """Download wheels and unpack them; the downloads go again.

    Arguments and errors are those of `download_wheels` and `unpack_wheel`.
    """
    downloads = destination / ".downloads"
    for wheel in download_wheels(requirements, downloads, architecture, python_version):
        unpack_wheel(wheel, destination, leave_out)
    shutil.rmtree(downloads)


def unpack_wheel(wheel: Path, destination: Path, leave_out: str = r"\Z.") -> None:
    """Unpack the importable files of a wheel.

    Args:
        wheel: The file.
        destination: A directory for `sys.path`.
        leave_out: Regular expression, searched in member names like `tvm/web/x`.

    Raises:
        StorageError: The file is damaged.
    """
    skip = re.compile(leave_out)
    try:
        with zipfile.ZipFile(wheel) as archive:
            wanted = [
                member
                for member in archive.namelist()
                # `x.data/scripts` and its kin are for an installer.
                if not skip.search(member) and not re.match(r"[^/]+\.data/", member)
            ]
            archive.extractall(destination, wanted)  # zipfile drops `..` and roots
    except zipfile.BadZipFile as error:
        raise StorageError(f"{wheel.name} is damaged: {error}", _DOWNLOAD) from error


def _find(directory: Path, requirement: str) -> Path:
    name = re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0]
    stem = re.sub(r"[-_.]+", "_", name).lower()
    found = [
        wheel
        for wheel in directory.glob("*.whl")
        if re.sub(r"[-_.]+", "_", wheel.name.split("-", 1)[0]).lower() == stem
    ]
    if len(found) != 1:
        raise ToolMissingError(
            f"pip downloaded {len(found)} wheels of {name}, where one was expected", _DOWNLOAD
        )
    return found[0]
