# SPDX-License-Identifier: Apache-2.0
"""Debian packages of another architecture, downloaded and unpacked without root.

apt gets directories of its own for its state and cache, so the machine's package lists, dpkg's
database and apt's configuration stay as they are. The package sources, their keys and the proxy
settings are the machine's.
"""

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tvmattend.cache import Progress
from tvmattend.errors import StorageError, ToolMissingError
from tvmattend.storage import says_full

_HINT = "the emulated board needs Debian 12 or later, whose package sources have arm64"
_NETWORK = "check the network, the proxy settings and the package sources (`apt-get update`)"
_ROOM = "free some space there, or set TVMATTEND_CACHE to a directory elsewhere"
_TIMEOUT_SECONDS = 1800


def unpack_packages(
    packages: Sequence[str], architecture: str, root: Path, leave_out: str, progress: Progress
) -> None:
    """Download packages with their dependencies and unpack them.

    Args:
        packages: Names, e.g. `python3-minimal`.
        architecture: Debian's name, e.g. `arm64`.
        root: Directory to unpack into; `lib` becomes a link to `usr/lib`, as Debian has it.
        leave_out: Regular expression, searched in member names like `usr/share/doc/x`.
        progress: Told about each step.

    Raises:
        ToolMissingError: apt or dpkg is missing, or a package cannot be had.
        StorageError: The disk is full.
    """
    for tool in ("apt-get", "apt-config", "dpkg-deb"):
        _tool(tool)  # before anything is made
    private = root.with_name(f"{root.name}.apt")
    try:
        environment = private_apt(private, architecture)
        progress(f"package lists of Debian {architecture}")
        lists = _apt(["update"], environment)
        progress(f"{' '.join(packages)} for {architecture}, with dependencies")
        download = ["install", "--download-only", "--yes", "--no-install-recommends"]
        done = _apt([*download, *packages], environment)
        if done.returncode != 0:
            # A source that cannot be read matters only when a package is missing for it.
            reason = _errors(done.stderr) or _errors(lists.stderr)
            if says_full(done.stderr + lists.stderr):
                raise StorageError(f"apt ran out of space in {private}: {reason}", _ROOM)
            raise ToolMissingError(
                f"apt cannot download {', '.join(packages)} for {architecture}: {reason}",
                _NETWORK if lists.returncode != 0 else _HINT,
            )
        archives = sorted((private / "cache" / "archives").glob("*.deb"))
        progress(f"unpacking {len(archives)} packages")
        root.mkdir(parents=True)
        (root / "usr" / "lib").mkdir(parents=True)
        (root / "lib").symlink_to("usr/lib")
        for archive in archives:
            unpack_package(archive, root, re.compile(leave_out))
    finally:
        shutil.rmtree(private, ignore_errors=True)  # an error above is the one to see


def private_apt(private: Path, architecture: str) -> dict[str, str]:
    """Write apt's whole configuration anew: the machine's transport settings, our directories."""
    for name in ("state/lists/partial", "cache/archives/partial", "log"):
        (private / name).mkdir(parents=True)
    (private / "status").touch()  # nothing is installed, so every dependency is downloaded
    dump = subprocess.run(
        [_tool("apt-config"), "dump"],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if dump.returncode != 0:
        raise ToolMissingError(
            f"apt's configuration cannot be read: {_errors(dump.stderr)}", "see `apt-config dump`"
        )
    # Proxies, certificates, retries. Hooks (`APT::Update::Post-Invoke`, ...) stay out, and so do
    # index targets, by which other programs have apt download more than package lists.
    kept = [
        line
        for line in dump.stdout.splitlines()
        if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")
    ]
    # `Dir::Etc::sourcelist` and its kin are not set: they are the machine's.
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",  # `_apt` may not read our directory; root need not give it away
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
        "Dir::State": str(private / "state"),
        "Dir::State::status": str(private / "status"),
        "Dir::Cache": str(private / "cache"),
        "Dir::Log": str(private / "log"),
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
    }
    ours = [f'{key} "{value}";' for key, value in settings.items()]
    configuration = private / "apt.conf"
    configuration.write_text("\n".join([*kept, *ours]) + "\n")
    return {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}


def _apt(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [_tool("apt-get"), "--quiet=2", *words],
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
            f"`apt-get {words[0]}` took more than {_TIMEOUT_SECONDS} s", _NETWORK
        ) from error


def _errors(text: str) -> str:
    lines = text.splitlines()
    errors = [line for line in lines if line.startswith("E: ")]
    # A list that cannot be fetched is a warning to apt.
    told = errors or [line for line in lines if line.startswith("W: ")]
    return "; ".join(line[3:] for line in told[:2])


def unpack_package(archive: Path, root: Path, leave_out: re.Pattern[str]) -> None:
    """Unpack the wanted files of one package; nothing lands outside `root`.

    Raises:
        StorageError: The package is damaged.
    """
    done = subprocess.run(
        [_tool("dpkg-deb"), "--fsys-tarfile", str(archive)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    # It gives what there is of a cut package, which may look whole to tarfile.
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _damaged(archive, lines[0] if lines else f"exit code {done.returncode}")
    try:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as members:
            for member in members:
                name = _merged(member.name)
                if not member.isdir() and not leave_out.search(str(name)):
                    _write(members, member, root, name)
    except tarfile.TarError as error:
        raise _damaged(archive, str(error)) from error


def _damaged(archive: Path, reason: str) -> StorageError:
    return StorageError(f"{archive.name} is damaged: {reason}", "try again")


def _write(
    members: tarfile.TarFile, member: tarfile.TarInfo, root: Path, name: PurePosixPath
) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        # Absolute, or with enough `..`, a link would lead out of the root, and what comes after it
        # be written there. `normpath` goes no higher than `/`, which is the root.
        target = os.path.normpath(PurePosixPath("/", member.name).parent / member.linkname)
        path.symlink_to(os.path.relpath(root.resolve() / _merged(target), path.parent.resolve()))
    elif member.islnk():
        path.hardlink_to(root / _merged(member.linkname))
    else:
        content = members.extractfile(member)
        if content is not None:  # None: a device file, which nothing here needs
            path.write_bytes(content.read())
            path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _merged(name: str) -> PurePosixPath:
    """`./lib/x` is `usr/lib/x` since Debian 12; packages name either."""
    parts = [part for part in PurePosixPath(name).parts if part not in {".", "..", "/"}]
    if parts and parts[0] in {"lib", "bin", "sbin"}:
        parts.insert(0, "usr")
    return PurePosixPath(*parts)


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ToolMissingError(f"there is no `{name}`", _HINT)
    return path
