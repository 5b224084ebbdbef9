# SPDX-License-Identifier: Apache-2.0
"""What a Raspberry Pi 4 tells its programs about itself, for a guest that asks.

Under `qemu-aarch64` a program sees this machine's `/proc/cpuinfo` and `/sys/devices/system/cpu`.
Libraries choose block sizes by the caches they find there, so they would run other code than on
the board. QEMU looks into its `-L` directory first; these files go there.
"""

import hashlib
from pathlib import Path

CORES = 4

_CPU = """processor\t: {cpu}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


def board_files_version() -> str:
    """Tells what `write_board_files` writes from what another version wrote."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def write_board_files(place: Path, sysroot: Path | None, clock_hz: float) -> None:
    """Make an `-L` directory: the board's files, and links to what `sysroot` has.

    Args:
        place: An empty directory.
        sysroot: Where the guest's libraries are, or None.
        clock_hz: Of the board.
    """
    if sysroot is not None:
        for entry in sysroot.iterdir():
            if entry.name not in {"proc", "sys"}:
                (place / entry.name).symlink_to(entry.absolute())
    _write(place / "proc/cpuinfo", "".join(_CPU.format(cpu=cpu) for cpu in range(CORES)))
    cpus = place / "sys/devices/system/cpu"
    for name in ("possible", "present", "online"):
        _write(cpus / name, f"0-{CORES - 1}\n")
    for cpu in range(CORES):
        mine, all_of_them = f"{1 << cpu:x}", f"{(1 << CORES) - 1:x}"
        core = cpus / f"cpu{cpu}"
        for name in ("thread_siblings", "core_cpus"):
            _write(core / "topology" / name, f"{mine}\n")
            _write(core / "topology" / f"{name}_list", f"{cpu}\n")
        _write(core / "cpufreq/cpuinfo_max_freq", f"{round(clock_hz / 1000)}\n")
        caches = (
            ("1", "Data", "32K", mine),
            ("1", "Instruction", "48K", mine),
            ("2", "Unified", "1024K", all_of_them),
            # A third index of this machine would show through.
            ("0", "None", "0K", mine),
        )
        for index, (level, kind, size, shared) in enumerate(caches):
            cache = core / f"cache/index{index}"
            _write(cache / "level", f"{level}\n")
            _write(cache / "type", f"{kind}\n")
            _write(cache / "size", f"{size}\n")
            _write(cache / "shared_cpu_map", f"{shared}\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")
