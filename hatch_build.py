# SPDX-License-Identifier: Apache-2.0
"""Put the git revision into what is installed: outside a checkout there is no git to ask.

`tvmattend.bundle.writer.source_revision` reads the file. It never lies in the checkout.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STAMP = "tvmattend/_revision.txt"


class RevisionHook(BuildHookInterface):
    """Adds `STAMP` to wheels and source distributions that are built from a git checkout."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the stamp into a directory of its own; without a revision there is none.

        Args:
            version: `editable` for an installation that stays in the checkout and asks git itself.
            build_data: Hatchling's account of the build; `force_include` is added to.
        """
        revision = None if version == "editable" else git_revision(Path(self.root))
        if revision is None:
            return
        self._directory = tempfile.mkdtemp(prefix="tvmattend-revision-")
        stamp = Path(self._directory) / "revision"
        stamp.write_text(revision + "\n", encoding="utf-8")
        build_data["force_include"][str(stamp)] = STAMP

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the directory."""
        del version, build_data, artifact_path
        if hasattr(self, "_directory"):
            shutil.rmtree(self._directory)


def git_revision(root: Path) -> str | None:
    """Give the commit, with `-dirty` behind it if files differ; None without git or repository."""
    if not (root / ".git").exists():
        return None  # a source distribution in somebody else's repository must not name theirs
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], check=False, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git on this machine: a revision is a courtesy, not a need
    return done.stdout.strip() or None
