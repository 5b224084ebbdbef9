# SPDX-License-Identifier: Apache-2.0
"""The peers as a board has them: their aarch64 wheels, downloaded once and unpacked."""

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tvmattend.bench.catalogue import FORMATS, OURS, TVM_DEFAULT, UNTUNED
from tvmattend.cache import Progress, prepared
from tvmattend.device.wheels import install_wheels


@dataclass(frozen=True)
class BoardPeer:
    """How a runtime comes onto the board.

    Attributes:
        guest: Its name in peer_guest.py.
        wheels: Of aarch64, pinned: another version is another figure.
        converter: Packages that its converter needs here; the runtime itself is not needed here.
        adapter: Module whose `Adapter` converts for the board; empty for the one of this machine.
    """

    guest: str
    wheels: tuple[str, ...] = ()
    converter: tuple[str, ...] = ()
    adapter: str = ""

    @property
    def version(self) -> str:
        """Of the wheel, or nothing for what comes with tvmattend."""
        return self.wheels[0].partition("==")[2] if self.wheels else ""

    def missing(self) -> tuple[str, ...]:
        """Packages of the converter that are not installed; they are looked for, not imported."""
        return tuple(name for name in self.converter if importlib.util.find_spec(name) is None)

    def unpacked(self, python_version: str, progress: Progress) -> tuple[Path, ...]:
        """Give the directories to import from.

        Raises:
            ToolMissingError: pip is missing, or a wheel cannot be had.
            StorageError: No room in the cache.
        """
        if not self.wheels:
            return ()
        stamp = {"wheels": list(self.wheels), "python": python_version}
        build = functools.partial(_unpack, self.wheels, python_version, progress)
        return (prepared(f"board-{self.guest}", stamp, build, progress, _BYTES),)


# Unpacked wheels and, meanwhile, their downloads.
_BYTES = 120 << 20

_OURS = BoardPeer("tvmattend")
BOARD_PEERS: Mapping[str, BoardPeer] = {
    OURS: _OURS,
    UNTUNED: _OURS,
    **dict.fromkeys(FORMATS, _OURS),
    TVM_DEFAULT: BoardPeer("tvmattend", adapter="tvmattend.bench.tvm_default_board"),
    "ncnn": BoardPeer("ncnn", ("ncnn==1.0.20261020",), ("pnnx",)),
    "onnxruntime": BoardPeer("onnxruntime", ("onnxruntime==1.31.1",), ("onnxscript",)),
    "litert": BoardPeer("litert", ("ai-edge-litert==2.3.0",), ("litert_torch",)),
}


def _unpack(wheels: tuple[str, ...], version: str, progress: Progress, place: Path) -> None:
    progress(f"wheels for aarch64 and Python {version}: {', '.join(wheels)}")
    install_wheels(wheels, place, "aarch64", version, r"/include/|\.a$")
