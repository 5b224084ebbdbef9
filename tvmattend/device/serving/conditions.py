# SPDX-License-Identifier: Apache-2.0
"""How hot and how fast a Linux board runs: governor, clock, temperature, throttling.

Read through a function, so that the same places are read by a server of ours on the board, by a
client over TVM's own server, and in tests from a tree of files that somebody made up.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Read = Callable[[str], str]

_CPU = "/sys/devices/system/cpu/cpu0"
_THERMAL = "/sys/class/thermal"
# The Raspberry Pi's firmware says here what `vcgencmd get_throttled` says, in hexadecimal.
_FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_COOLERS = 4  # devices looked at; fans are among them, and mean nothing
_VCGENCMD_SECONDS = 2.0
_DIGITS = 20


def read_conditions(read: Read, firmware: Callable[[], str] = lambda: "") -> dict[str, Any]:
    """Ask everything that Linux tells without privileges.

    Args:
        read: Gives a file's text without white space around it; empty if it cannot be read.
        firmware: Gives what `vcgencmd get_throttled` prints, for kernels without the file.

    Returns:
        Of `governor`, `clock_mhz`, `max_mhz`, `temperature_c`, `firmware_flags` (the Raspberry
        Pi's bits), `cooling` (steps by which the kernel holds the clock down) and `throttle_count`
        (x86: how often the core slowed itself down) those that the machine has.
    """
    found: dict[str, Any] = {}
    if governor := read(f"{_CPU}/cpufreq/scaling_governor"):
        found["governor"] = governor
    for name, file in (("clock_mhz", "scaling_cur_freq"), ("max_mhz", "cpuinfo_max_freq")):
        if (kilohertz := _number(read(f"{_CPU}/cpufreq/{file}"))) is not None:
            found[name] = kilohertz / 1e3
    thousandths = _number(read(f"{_THERMAL}/thermal_zone0/temp"))
    if thousandths is not None:
        found["temperature_c"] = thousandths / 1e3
    flags = _number(read(_FIRMWARE) or firmware().rpartition("=")[2], 16)
    if flags is not None:
        found["firmware_flags"] = flags
    cooling = _cooling(read)
    if cooling is not None:
        found["cooling"] = cooling
    count = _number(read(f"{_CPU}/thermal_throttle/core_throttle_count"))
    if count is not None:
        found["throttle_count"] = count
    return found


def file_reader(root: str = "") -> Read:
    """Read this machine's files; with a root, those of the tree below it."""

    def read(path: str) -> str:
        try:
            return Path(root + path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:  # a machine without it, or one that keeps it to itself: an answer too
            return ""

    return read


def vcgencmd(root: str = "") -> Callable[[], str]:
    """Give a function that runs the Raspberry Pi's `vcgencmd get_throttled`, if it is there."""
    program = f"{root}/usr/bin/vcgencmd" if root else shutil.which("vcgencmd")

    def ask() -> str:
        if program is None or not Path(program).is_file():
            return ""
        try:
            done = subprocess.run(
                [program, "get_throttled"],
                capture_output=True,
                text=True,
                timeout=_VCGENCMD_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip()

    return ask


def _cooling(read: Read) -> int | None:
    """The largest step of a device that cools by slowing the processor down."""
    steps = []
    for number in range(_COOLERS):
        kind = read(f"{_THERMAL}/cooling_device{number}/type")
        if not kind:
            break
        if "cpufreq" in kind:  # `thermal-cpufreq-0`, `cpufreq-cpu0`
            state = _number(read(f"{_THERMAL}/cooling_device{number}/cur_state"))
            steps += [] if state is None else [state]
    return max(steps, default=None)


def _number(text: str, base: int = 10) -> int | None:
    """A number as Linux writes them; None for another text, and for more digits than Linux has."""
    try:
        return int(text, base) if len(text) <= _DIGITS else None
    except ValueError:
        return None
