# SPDX-License-Identifier: Apache-2.0
"""A board's clock, temperature and throttling, and whether a sample taken meanwhile is worth it."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tvmattend.errors import printable

# Bits of the Raspberry Pi's firmware: what holds now, and what held since the board was started.
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_NOW = {0: "under-voltage", 1: "the clock is capped", 2: "throttled", 3: "soft temperature limit"}
_SINCE = 16

# A fixed clock that moved by more than this was changed by somebody.
_CLOCK_TOLERANCE = 0.05
_FIXED = ("performance", "powersave", "userspace")


@dataclass(frozen=True)
class Conditions:
    """What a board says of itself at one moment; None and empty where it says nothing.

    Attributes:
        governor: Linux's frequency governor.
        clock_mhz: Frequency of core 0.
        max_mhz: Its highest.
        temperature_c: Degrees Celsius of the first thermal zone.
        firmware_flags: The Raspberry Pi's throttling bits.
        cooling: Steps by which the kernel holds the clock down.
        throttle_count: How often an x86 core slowed itself down since it was started.
    """

    governor: str = ""
    clock_mhz: float | None = None
    max_mhz: float | None = None
    temperature_c: float | None = None
    firmware_flags: int | None = None
    cooling: int | None = None
    throttle_count: int | None = None

    @property
    def throttled(self) -> str:
        """Why the board runs slower than it could, right now; empty if it does not."""
        flags = self.firmware_flags or 0
        reasons = [text for bit, text in _NOW.items() if flags >> bit & 1]
        if self.cooling:
            reasons.append(f"the kernel cools by {self.cooling} steps")
        return ", ".join(reasons)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value not in {None, ""}}


def conditions_from(told: Mapping[str, Any]) -> Conditions:
    """Take what a board told, and nothing that is not what it should be."""
    governor = told.get("governor")
    numbers: dict[str, Any] = {}
    for name in ("clock_mhz", "max_mhz", "temperature_c"):
        value: Any = told.get(name)
        if type(value) in {int, float} and abs(value) <= sys.float_info.max:  # NaN is not
            numbers[name] = float(value)
    for name in ("firmware_flags", "cooling", "throttle_count"):
        if type(told.get(name)) is int:
            numbers[name] = told[name]
    return Conditions(printable(governor) if isinstance(governor, str) else "", **numbers)


def disturbance(before: Conditions, after: Conditions) -> str:
    """Say why a sample taken between two moments should be taken again; empty if it is good.

    A clock under `ondemand` moves all the time, so only that of a fixed governor tells something.
    """
    for now in (before, after):
        if now.throttled:
            return now.throttled
    new = _since(after) & ~_since(before)
    if new:  # it came and went in between
        return ", ".join(text for bit, text in _NOW.items() if new >> bit & 1)
    if (after.throttle_count or 0) > (before.throttle_count or 0):
        return "the core slowed itself down"
    if before.governor != after.governor:
        return f"the governor changed from {before.governor} to {after.governor}"
    if after.governor in _FIXED and before.clock_mhz and after.clock_mhz:
        change = abs(after.clock_mhz - before.clock_mhz) / before.clock_mhz
        if change > _CLOCK_TOLERANCE:
            return f"the clock changed from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz"
    return ""


def _since(conditions: Conditions) -> int:
    return (conditions.firmware_flags or 0) >> _SINCE
