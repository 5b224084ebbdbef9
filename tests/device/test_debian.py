# SPDX-License-Identifier: Apache-2.0
"""Unpacking Debian packages into a root of our own; what is downloaded is in the emulated tests."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tvmattend.device.debian import private_apt, unpack_package, unpack_packages
from tvmattend.errors import StorageError, ToolMissingError

_CONTROL = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: y <y@z>\nDescription: z\n"


def package(directory: Path) -> Path:
    tree = directory / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(_CONTROL)
    for name in ("lib/arm/libold.so.1", "usr/lib/arm/libnew.so.1", "usr/share/doc/x/README"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/tool").write_text("tool")
    (tree / "usr/bin/tool").chmod(0o4755)
    (tree / "usr/bin/same").hardlink_to(tree / "usr/bin/tool")
    (tree / "usr/lib/arm/libabsolute.so").symlink_to("/lib/arm/libold.so.1")
    (tree / "lib/arm/librelative.so").symlink_to("libold.so.1")
    (tree / "lib/arm/libup.so").symlink_to("../../usr/lib/arm/libnew.so.1")
    return packed(tree)


def packed(tree: Path) -> Path:
    """Make a package of a tree, uncompressed."""
    archive = tree.with_suffix(".deb")
    subprocess.run(
        [shutil.which("dpkg-deb") or "dpkg-deb", "-Znone", "--build", tree, archive],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return archive


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    (place / "usr" / "lib").mkdir(parents=True)
    (place / "lib").symlink_to("usr/lib")
    return place


def test_a_package_lands_in_the_root_and_nowhere_else(tmp_path: Path, root: Path) -> None:
    unpack_package(package(tmp_path), root, re.compile("^usr/share/"))
    # Packages of before and after the merge of /lib meet in one directory.
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.name.startswith("lib")}
    assert {"usr/lib/arm/libold.so.1", "usr/lib/arm/libnew.so.1"} <= found
    assert not (root / "usr/share").exists()
    # Links stay inside: an absolute one would lead to this machine's file.
    assert (root / "usr/lib/arm/libabsolute.so").read_text() == "lib/arm/libold.so.1"
    assert not os.readlink(root / "usr/lib/arm/libabsolute.so").startswith("/")  # noqa: PTH115
    assert (root / "lib/arm/librelative.so").read_text() == "lib/arm/libold.so.1"
    assert (root / "lib/arm/libup.so").read_text() == "usr/lib/arm/libnew.so.1"
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "usr/bin/same").read_text() == "tool"


@pytest.mark.parametrize("target", ["../../../away", "/away", "../lib/../../../away"])
def test_nothing_is_written_through_a_link_that_leads_out(
    tmp_path: Path, root: Path, target: str
) -> None:
    (tmp_path / "away").mkdir()
    for name, files in (("one", ["away/kept"]), ("two", ["usr/lib/out/stray"])):
        for file in ("DEBIAN/control", *files):
            (tmp_path / name / file).parent.mkdir(parents=True)
            (tmp_path / name / file).write_text(_CONTROL)
        if name == "one":
            (tmp_path / "one/usr/lib").mkdir(parents=True)
            (tmp_path / "one/usr/lib/out").symlink_to(target)
        unpack_package(packed(tmp_path / name), root, re.compile("^$"))
    assert (root / "away/stray").read_text() == _CONTROL
    assert list((tmp_path / "away").iterdir()) == []


def test_a_package_that_was_cut_where_a_file_begins(tmp_path: Path, root: Path) -> None:
    archive = package(tmp_path)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: whole.index(b"./usr/share/doc/x/README")])
    with pytest.raises(StorageError, match=r"tree\.deb is damaged: .*end of file") as caught:
        unpack_package(archive, root, re.compile("^usr/share/"))
    assert caught.value.hint == "try again"


def test_a_damaged_package(tmp_path: Path, root: Path) -> None:
    archive = tmp_path / "x_1_arm64.deb"
    archive.write_bytes(b"!<arch>\n")
    with pytest.raises(StorageError, match=r"x_1_arm64\.deb is damaged"):
        unpack_package(archive, root, re.compile("^$"))


def test_no_apt_no_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match="no `apt-get`") as caught:
        unpack_packages(["x"], "arm64", tmp_path / "root", "^$", lambda _: None)
    assert "Debian" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_apt_that_is_configured_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "apt.conf"
    broken.write_text('Acquire "\n')
    monkeypatch.setenv("APT_CONFIG", str(broken))
    with pytest.raises(ToolMissingError, match="cannot be read: Syntax error") as caught:
        unpack_packages(["x"], "arm64", tmp_path / "root", "^$", lambda _: None)
    assert "apt-config dump" in caught.value.hint
    assert list(tmp_path.iterdir()) == [broken]


def test_without_a_network_nothing_is_left_and_the_machine_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> list[tuple[str, int]]:
        places = [Path("/var/lib/apt"), Path("/var/lib/dpkg"), Path("/var/cache/apt")]
        return [(str(place), place.stat().st_mtime_ns) for place in places if place.exists()]

    before = state()
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(ToolMissingError, match="apt cannot download no-such-package for arm64"):
        unpack_packages(["no-such-package"], "arm64", tmp_path / "root", "^$", lambda _: None)
    assert list(tmp_path.iterdir()) == []
    assert state() == before


def test_apt_is_told_nothing_that_the_machine_keeps(tmp_path: Path) -> None:
    """Every directory that apt writes to is private, and hooks are gone."""
    environment = private_apt(tmp_path / "apt", "arm64")
    dump = subprocess.run(
        [shutil.which("apt-config") or "apt-config", "dump"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    settings = dict(
        re.fullmatch(r'(\S+) "(.*)";', line).groups()  # type: ignore[union-attr]
        for line in dump.splitlines()
        if re.fullmatch(r'(\S+) "(.*)";', line)
    )
    for name in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Log"):
        assert settings[name].startswith(str(tmp_path)), name
    assert settings["APT::Architecture"] == "arm64"
    assert settings["Dir::Etc::sourceparts"] == "sources.list.d"
    assert not [name for name in settings if "Post-Invoke" in name or "Pre-Invoke" in name]


@pytest.mark.parametrize(
    "said",
    [
        "E: You don't have enough free space in /x/cache/archives/.",
        "E: Write error - write (28: No space left on device)",
    ],
)
def test_a_full_disk_is_told_from_a_package_that_is_not_there(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tvmattend.device.debian._apt",
        lambda words, _: subprocess.CompletedProcess(words, 100, "", said + "\n"),
    )
    with pytest.raises(StorageError, match="apt ran out of space") as caught:
        unpack_packages(["x"], "arm64", tmp_path / "root", "^$", lambda _: None)
    assert said[3:] in str(caught.value)
    assert "TVMATTEND_CACHE" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
