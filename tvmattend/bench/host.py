# SPDX-License-Identifier: Apache-2.0
"""The machine that figures were taken on, in words, and how busy it was meanwhile."""

import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_CPU_DIRECTORY = Path("/sys/devices/system/cpu")
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "torch", "numpy")


def describe_machine(cpus: Sequence[int] = ()) -> dict[str, Any]:
    """Describe this machine for a report.

    Args:
        cpus: Cores that the timing is bound to.

    Returns:
        Plain data; what the machine does not tell is None. `memory_gb` is in GiB.
    """
    # Of Linux: elsewhere these files are missing, and the entries None.
    text = _read(Path("/proc/cpuinfo"))
    frequency = f"cpu{cpus[0] if cpus else 0}/cpufreq"
    return {
        "cpu": _first(r"^(?:model name|Model)\s*:\s*(.+)$", text) or platform.processor() or None,
        "core": _core(text),
        "arch": platform.machine(),
        "cores": os.cpu_count(),
        "bound_to": sorted(cpus) or None,
        "clock_mhz": _number(_first(r"^cpu MHz\s*:\s*([\d.]+)$", text)),
        "max_clock_mhz": _khz(_read(_CPU_DIRECTORY / frequency / "cpuinfo_max_freq")),
        "governor": _read(_CPU_DIRECTORY / frequency / "scaling_governor").strip() or None,
        "simd": _simd(text),
        "memory_gb": _memory(_read(Path("/proc/meminfo"))),
        "kernel": platform.release(),
        "os": _first(r'^PRETTY_NAME="(.+)"$', _read(Path("/etc/os-release"))),
        "virtual": " hypervisor" in text,
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Give the description in one line."""
    parts = [
        str(machine["cpu"] or machine["arch"]),
        str(machine.get("core") or ""),  # earlier results have none
        f"{machine['cores']} cores",
        f"bound to {', '.join(map(str, machine['bound_to']))}" if machine["bound_to"] else "",
        f"{machine['clock_mhz']:.0f} MHz" if machine["clock_mhz"] else "",
        str(machine["simd"] or ""),
        f"governor {machine['governor']}" if machine["governor"] else "",
        "virtual" if machine["virtual"] else "",
        f"Linux {machine['kernel']}",
    ]
    return ", ".join(part for part in parts if part)


def machine_slug(machine: dict[str, Any]) -> str:
    """Name the machine for a file: CPU, core, vectors and their number.

    Virtual machines tell no more than `AMD EPYC` of several generations, hence the core:
    `amd-epyc-family-25-model-17-avx-512-2-cores`.
    """
    parts = (machine["cpu"] or machine["arch"], machine.get("core"), machine["simd"])
    words = f"{' '.join(str(part) for part in parts if part)} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def choose_cpus(threads: int) -> list[int]:
    """Choose the cores to bind to: the fastest that this process may use, of these the last.

    The first core of a machine is the one that serves most interrupts.
    """

    def speed(cpu: int) -> float:
        limit = _khz(_read(_CPU_DIRECTORY / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"))
        return limit or 0.0

    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (-speed(cpu), -cpu))
    return sorted(allowed[:threads])


class Load:
    """How much of a set of cores other processes use while something is timed.

    Args:
        cpus: The cores.
        own: Process ids whose time is not others'.
    """

    def __init__(self, cpus: Iterable[int], own: Iterable[int]) -> None:
        self._cpus, self._own = list(cpus), dict[int, float | None](dict.fromkeys(own))
        self._start = self._sample()

    def others(self) -> float | None:
        """Share of the cores' time since the start that went to others; None if unknown."""
        if self._start is None or (now := self._sample()) is None:
            return None
        busy, total, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, (busy - own) / total) if total > 0 else None

    def _sample(self) -> tuple[float, float, float] | None:
        """Ticks that the cores were busy, that passed on them, and that our processes used."""
        busy = total = own = 0.0
        text = _read(Path("/proc/stat"))
        for cpu in self._cpus:
            line = _first(rf"^cpu{cpu} (.+)$", text)
            if line is None:
                return None
            ticks = [float(word) for word in line.split()[:8]]
            idle = ticks[3] + ticks[4]
            busy += sum(ticks) - idle
            total += sum(ticks)
        for pid in self._own:
            # The name, in brackets, may hold spaces; utime and stime are 12th and 13th after it.
            fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
            used = float(fields[11]) + float(fields[12]) if fields else self._own[pid]
            if used is None:
                return None
            own += used
            self._own[pid] = used  # of one that ends, what it had used when last looked at
        return busy, total, own


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not every kernel has every one of these files; the entry is None then


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else None


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _khz(text: str) -> float | None:
    return int(text) / 1000 if text.strip().isdecimal() else None


def _memory(text: str) -> float | None:
    kilobytes = _first(r"^MemTotal:\s*(\d+) kB$", text)
    return round(int(kilobytes) / 2**20, 1) if kilobytes else None


def _core(text: str) -> str | None:
    """What CPUID calls the core: a virtual machine's model name may not tell one from another."""
    family = _first(r"^cpu family\s*:\s*(\d+)$", text)
    model = _first(r"^model\s*:\s*(\d+)$", text)
    return f"family {family} model {model}" if family and model else None


def _simd(text: str) -> str | None:
    flags = set((_first(r"^(?:flags|Features)\s*:(.*)$", text) or "").split())
    for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON")):
        if flag in flags:
            return name
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
