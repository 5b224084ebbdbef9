# SPDX-License-Identifier: Apache-2.0
"""The machine that is measured, as its records describe it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvmattend.device.board import BoardInfo, parse_cpuinfo
from tvmattend.target import host_target

_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def board_machine(info: BoardInfo) -> dict[str, Any]:
    """A board's description without its address, which is nobody's business in a shipped record."""
    return {
        "core": info.core or info.machine,
        "model": info.model,
        "cores": info.core_count,
        "clock_mhz": info.clock_mhz,
        "governor": info.governor,
        "emulated": info.emulated,
    }


def host_machine() -> dict[str, Any]:
    """This machine in the same words."""
    cpu = parse_cpuinfo(_read(Path("/proc/cpuinfo")))
    clock = _read(_FREQUENCY / "scaling_cur_freq")
    return {
        "core": host_target().cpu,
        "model": cpu.model,
        "cores": cpu.count,
        "clock_mhz": int(clock) / 1e3 if clock.isdigit() else 0.0,
        "governor": _read(_FREQUENCY / "scaling_governor"),
        "emulated": False,
    }


def describe_machine(machine: Mapping[str, Any]) -> str:
    """One line for a person: `Raspberry Pi 4 Model B (cortex-a72)`."""
    model, core = machine.get("model"), machine.get("core")
    return f"{model} ({core})" if model and core else str(model or core or "an unnamed machine")


def _read(path: Path) -> str:
    # Virtual machines and containers show no frequency: that is an answer, not a fault.
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
