# SPDX-License-Identifier: Apache-2.0
"""The machine that is measured, as its records describe it."""

from collections.abc import Mapping
from typing import Any

from tvmattend.device.board import BoardInfo, parse_cpuinfo
from tvmattend.device.conditions import conditions_from
from tvmattend.device.serving.conditions import file_reader, read_conditions
from tvmattend.target import host_target


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
    read = file_reader()
    cpu = parse_cpuinfo(read("/proc/cpuinfo"))
    now = conditions_from(read_conditions(read))
    return {
        "core": host_target().cpu,
        "model": cpu.model,
        "cores": cpu.count,
        "clock_mhz": now.clock_mhz or 0.0,
        "governor": now.governor,
        "emulated": False,
    }


def describe_machine(machine: Mapping[str, Any]) -> str:
    """One line for a person: `Raspberry Pi 4 Model B (cortex-a72)`."""
    model, core = machine.get("model"), machine.get("core")
    return f"{model} ({core})" if model and core else str(model or core or "an unnamed machine")
