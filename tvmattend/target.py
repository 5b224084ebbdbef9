# SPDX-License-Identifier: Apache-2.0
"""Every way of naming a machine -> one frozen `TargetSpec` -> TVM's target.

TVM 0.27 takes a dict, JSON or a tag and refuses the command-line form; users type the
command-line form. All forms of the same machine give equal specs but for the thread count, and the
same `name`, which is the directory under `tuning_logs/` and `artifacts/`.
"""

import difflib
import json
import os
import platform
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tvmattend.errors import TargetError
from tvmattend.text import how_many

_KNOWN_ARCHES = ("aarch64", "x86_64")


@dataclass(frozen=True)
class TargetSpec:
    """A CPU that `tvmattend` compiles for.

    Attributes:
        triple: LLVM triple, normalised to `<arch>-linux-gnu`.
        cpu: LLVM's name of the core, e.g. `cortex-a72`.
        features: LLVM feature flags beyond the core's own, sorted, each with its sign.
        num_cores: Threads that the kernels are scheduled for.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    num_cores: int = 1

    @property
    def arch(self) -> str:
        """`aarch64` or `x86_64`."""
        return self.triple.split("-", 1)[0]

    @property
    def name(self) -> str:
        """Directory name: the core, then the features that are not implied; never the threads."""
        extra = [
            flag for flag in self.features if flag not in _implied_features(self.triple, self.cpu)
        ]
        return "".join([self.cpu, *extra])

    @property
    def level(self) -> "TargetSpec | None":
        """The x86-64 level whose kernels this core has too; None for a level itself and on Arm."""
        if self.arch != "x86_64" or self.cpu in _LEVELS:
            return None
        cpu = _LEVELS[_x86_level(self.cpu) - 1]
        return TargetSpec(self.triple, cpu, _implied_features(self.triple, cpu), self.num_cores)

    @property
    def is_host(self) -> bool:
        """Whether code for this target runs on this machine."""
        if self.arch != _host_arch():
            return False
        if self.arch == "x86_64":
            if _x86_level(self.cpu) > _x86_level(_host_cpu()):
                return False
            plain = self.cpu in _LEVELS and self.features == _implied_features(
                self.triple, self.cpu
            )
            return plain or set(self.cpu_flags) <= _host_flags()  # which asks LLVM
        on = {flag[1:] for flag in self.features if flag[0] == "+"}
        needs = _ARM_EXTENSIONS & (on | _cpu_features(self.triple, self.cpu))
        return needs <= _cpu_features(self.triple, _host_cpu())

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """What `/proc/cpuinfo` must list for this target's code to run, in its own words."""
        asked = {flag[1:] for flag in self.features if flag[0] == "+"}
        has = (asked | _cpu_features(self.triple, self.cpu)) - {
            flag[1:] for flag in self.features if flag[0] == "-"
        }
        names = _CPUINFO_FLAGS[self.arch]
        return tuple(sorted(names[name] for name in has & names.keys()))

    def to_json(self) -> dict[str, Any]:
        """TVM's own form of the target, as plain data."""
        spec: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.cpu,
            "num-cores": self.num_cores,
        }
        if self.features:
            spec["mattr"] = list(self.features)
        return spec

    def to_tvm(self) -> Any:
        """TVM's target object."""
        from tvm.target import Target

        return Target(self.to_json())

    def describe(self) -> str:
        """One line for a person."""
        flags = f" {','.join(self.features)}" if self.features else ""
        return f"llvm {self.triple} {self.cpu}{flags}, {how_many(self.num_cores, 'thread')}"


# Of a machine that is not here and whose number nobody gave: Raspberry Pi 3/4/5 have four cores; a
# Cortex-A76 or A55 cluster of the common SoCs (BCM2712, RK3566) likewise.
BOARD_CORES = 4
# That an instance of a standalone library can have (<MODEL>_MAX_THREADS of its header).
MOST_THREADS = 64

# Cores of boards that people own. A new one has a name here and no limits of its own until
# schedules/machines.py gives it some: there every Arm core but the Cortex-A72 is `AARCH64`.
_PRESETS: Mapping[str, TargetSpec] = {
    cpu: TargetSpec("aarch64-linux-gnu", cpu, (), BOARD_CORES)
    for cpu in ("cortex-a72", "cortex-a53", "cortex-a55", "cortex-a73", "cortex-a76")
}

# Of x86-64, by number: https://gitlab.com/x86-psABIs/x86-64-ABI, "Micro-architecture levels".
_LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")

PRESETS: tuple[str, ...] = (*_PRESETS, *_LEVELS, "host")

_FORMS = (
    f"a preset ({', '.join(PRESETS)}), a core that LLVM knows, "
    '"llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72", a JSON object, or a TVM tag'
)

# What a target may say. `device`, `model`, `keys` and `host` select TVM's own schedules and change
# no code of ours; TVM derives the keys and the features again.
_OPTIONS = frozenset((
    "kind",
    "tag",
    "keys",
    "host",
    "device",
    "model",
    "mtriple",
    "mcpu",
    "mattr",
    "num-cores",
))


def parse_target(text: str | Mapping[str, Any], threads: int | None = None) -> TargetSpec:
    """Understand a target in any of its forms.

    Without a number of cores in it a target has this machine's (64 at most) if it is this machine
    or an x86-64 level of it, else 4.

    Args:
        text: A preset (`cortex-a72`, `host`), another core of LLVM's (`skylake`),
            `llvm -mtriple=... -mcpu=...`, a dict or its JSON, or a TVM tag
            (`raspberry-pi/4b-aarch64`). Fields beside a dict's `tag` go before the tag's own.
        threads: Overrides the number of cores.

    Raises:
        TargetError: The text is none of these, or names a core or a feature that LLVM does not
            know.
    """
    if threads is not None and threads < 1:
        raise TargetError(f"--threads {threads} is not a number of threads", "give 1 or more")
    if not isinstance(text, str | Mapping):
        raise TargetError(f"target {text!r} is not text or an object", f"use {_FORMS}")
    spec = _from_mapping(text, str(dict(text))) if isinstance(text, Mapping) else _from_text(text)
    return spec if threads is None else replace(spec, num_cores=threads)


def host_target(threads: int | None = None) -> TargetSpec:
    """The machine this runs on, as an x86-64 level (so that records are shared) or an Arm core."""
    return parse_target("host", threads)


def _from_text(text: str) -> TargetSpec:
    word = text.strip()
    if word.lower() == "host":
        return _host()
    if word.lower() in _PRESETS:
        return _PRESETS[word.lower()]
    if word.lower() in _LEVELS:
        return _from_mapping({"mtriple": "x86_64-linux-gnu", "mcpu": word}, word)
    if word.startswith("{"):
        try:
            parsed = json.loads(word)
        except (ValueError, RecursionError) as error:
            raise TargetError(
                f"target is not valid JSON: {error}", 'e.g. {"kind": "llvm", "mcpu": "cortex-a72"}'
            ) from error
        return _from_mapping(parsed, word)
    if word.split(" ", 1)[0] == "llvm":
        return _from_command_line(word)
    return _from_name(word)


def _from_command_line(text: str) -> TargetSpec:
    try:
        words = shlex.split(text)[1:]
    except ValueError as error:
        raise TargetError(f"target `{text}`: {error}", "check the quotes") from error
    fields: dict[str, Any] = {"kind": "llvm"}
    position = 0
    while position < len(words):
        match = re.fullmatch(r"--?([a-z][a-z-]*)(?:=(.*))?", words[position])
        if match is None:
            raise TargetError(
                f"target `{text}`: `{words[position]}` is not an option", "write `-mcpu=cortex-a72`"
            )
        key, value = match[1], match[2]
        if value is None:  # `-mcpu cortex-a72`
            position += 1
            if position == len(words):
                raise TargetError(f"target `{text}`: -{key} has no value", f"write `-{key}=VALUE`")
            value = words[position]
        if not value:
            raise TargetError(f"target `{text}`: -{key} has no value", f"write `-{key}=VALUE`")
        fields[key] = value
        position += 1
    return _from_mapping(fields, text)


def _from_name(word: str) -> TargetSpec:
    """Of a core that LLVM knows (`skylake`), or a tag."""
    if any(word.lower() in _known_cpus(f"{arch}-linux-gnu") for arch in _KNOWN_ARCHES):
        return _from_mapping({"mcpu": word}, word)
    return _from_mapping(_fields_of_tag(word), word)


def _fields_of_tag(word: str) -> dict[str, Any]:
    from tvm.target import Target, list_tags

    tags = [str(tag) for tag in list_tags() or ()]
    if word not in tags:
        near = difflib.get_close_matches(word.lower(), [*PRESETS, *tags], n=2)
        hint = f"did you mean {' or '.join(near)}? Else use {_FORMS}" if near else f"use {_FORMS}"
        raise TargetError(f"unknown target `{word}`", hint)
    return dict(Target(word).export())


def _from_mapping(fields: Mapping[str, Any], text: str) -> TargetSpec:
    if not isinstance(fields, Mapping):
        raise TargetError(f"target `{text}` is not an object", 'e.g. {"kind": "llvm"}')
    if fields.get("tag"):  # as TVM reads it
        fields = {**_fields_of_tag(str(fields["tag"])), **fields}
    kind = fields.get("kind", "llvm")
    if kind != "llvm":
        raise TargetError(
            f"target kind `{kind}` is not supported", "tvmattend compiles for CPUs: kind `llvm`"
        )
    cpu = _word(fields, "mcpu", text).lower()
    triple = _normalise_triple(_word(fields, "mtriple", text), cpu, text)
    for key in fields:
        if key not in _OPTIONS and not str(key).startswith("feature."):
            raise TargetError(
                f"target `{text}`: unknown option `{key}`", "known: mtriple, mcpu, mattr, num-cores"
            )
    if not cpu:
        cpu = "generic" if triple.startswith("aarch64") else "x86-64"
    _check_cpu(triple, cpu, text)
    features = _normalise_features(fields.get("mattr"), triple, cpu, text)
    return TargetSpec(triple, cpu, features, _cores(fields, triple, cpu, text))


def _word(fields: Mapping[str, Any], key: str, text: str) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str):
        raise TargetError(f"target `{text}`: {key} is not text", f'e.g. "{key}": "cortex-a72"')
    return value.strip()


def _normalise_triple(triple: str, cpu: str, text: str) -> str:
    if not triple:
        if cpu in _PRESETS:
            return _PRESETS[cpu].triple
        # A core names its architecture; what both or neither know is taken to be the host's.
        others = [arch for arch in _KNOWN_ARCHES if arch != _host_arch()]
        for arch in (_host_arch(), *others) if cpu else ():
            if arch in _KNOWN_ARCHES and cpu in _known_cpus(f"{arch}-linux-gnu"):
                return f"{arch}-linux-gnu"
        if cpu:
            raise _unknown_core(cpu, "", text)
        triple = f"{_host_arch()}-linux-gnu"
    arch, _, system = triple.partition("-")
    arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch)
    if arch not in _KNOWN_ARCHES or not re.fullmatch(r"(|(\w+-)?linux(-gnu)?)", system):
        raise TargetError(
            f"target `{text}`: triple `{triple}` is not supported",
            "use aarch64-linux-gnu or x86_64-linux-gnu",
        )
    return f"{arch}-linux-gnu"


def _normalise_features(raw: Any, triple: str, cpu: str, text: str) -> tuple[str, ...]:
    """Sort the flags, and drop those that say what the core has or lacks anyway."""
    flags = raw.split(",") if isinstance(raw, str) else () if raw is None else raw
    if isinstance(flags, Mapping) or not isinstance(flags, Iterable):
        raise TargetError(f"target `{text}`: mattr is not a list", 'e.g. "mattr": ["+crc"]')
    wanted = {str(flag).strip() for flag in flags} - {""}
    for flag in sorted(wanted):
        if not re.fullmatch(r"[+-][a-z0-9][a-z0-9._-]*", flag):
            raise TargetError(f"target `{text}`: `{flag}` is not a feature flag", "e.g. `+crc`")
        if flag[0] == "-" and f"+{flag[1:]}" in wanted:
            raise TargetError(
                f"target `{text}`: feature `{flag[1:]}` is on and off", "give one of the two"
            )
    if "+crypto" in wanted and triple.startswith("aarch64"):
        wanted = (wanted - {"+crypto"}) | {"+aes", "+sha2"}
    if triple.startswith("aarch64"):
        wanted -= {"+neon", "+fp-armv8"}  # part of every AArch64 core that runs Linux
    for flag in sorted(wanted):
        if not _is_feature(triple, cpu, flag[1:]):
            raise _unknown_feature(triple, cpu, flag, text)
    if wanted:
        has = _cpu_features(triple, cpu)
        wanted = {flag for flag in wanted if (flag[0] == "+") != (flag[1:] in has)}
    return tuple(sorted(wanted | set(_implied_features(triple, cpu))))


def _cores(fields: Mapping[str, Any], triple: str, cpu: str, text: str) -> int:
    raw = fields.get("num-cores")
    if raw is None:
        if cpu in _PRESETS:
            return _PRESETS[cpu].num_cores
        return _host_cores() if _is_this_machine(triple, cpu) else BOARD_CORES
    if not re.fullmatch(r"[1-9][0-9]{0,3}", str(raw)) or isinstance(raw, bool):
        raise TargetError(f"target `{text}`: num-cores `{raw}` is not a count", "give 1 or more")
    return int(raw)


def _check_cpu(triple: str, cpu: str, text: str) -> None:
    """Ask LLVM, which otherwise only warns and compiles for a generic core."""
    if cpu in _PRESETS and triple == _PRESETS[cpu].triple:
        return
    if cpu not in _known_cpus(triple):
        raise _unknown_core(cpu, triple, text)


def _unknown_core(cpu: str, triple: str, text: str) -> TargetError:
    triples = [triple] if triple else [f"{arch}-linux-gnu" for arch in _KNOWN_ARCHES]
    known = [name for one in triples for name in _known_cpus(one)]
    near = difflib.get_close_matches(cpu, known, n=6, cutoff=0.7)
    return TargetError(
        f"target `{text}`: LLVM knows no core `{cpu}`" + (f" for {triple}" if triple else ""),
        f"did you mean {', '.join(near)}?" if near else f"presets: {', '.join(PRESETS)}",
    )


@cache
def _known_cpus(triple: str) -> tuple[str, ...]:
    """Cores of 64 bits: LLVM ends the process where it is asked for such code of another."""
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_cpu_archlist

    target = Target({"kind": "llvm", "mtriple": triple})
    names = [str(name) for name in llvm_get_cpu_archlist(target)]
    wide = triple.startswith("aarch64")
    return tuple(name for name in names if wide or "64bit" in _cpu_features(triple, name))


@cache
def _cpu_features(triple: str, cpu: str, *flags: str) -> frozenset[str]:
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_cpu_features

    asked = {"mattr": list(flags)} if flags else {}
    target = Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu, **asked})
    return frozenset(str(name) for name in llvm_get_cpu_features(target))


@cache
def _some_features(triple: str) -> frozenset[str]:
    """All that any core has. LLVM has more, and TVM no list of them."""
    return frozenset().union(*(_cpu_features(triple, cpu) for cpu in _known_cpus(triple)))


def _is_feature(triple: str, cpu: str, name: str) -> bool:
    """Whether LLVM knows a feature; asked about one that no core has, it may warn on stderr."""
    return name in _some_features(triple) or name in _cpu_features(triple, cpu, f"+{name}")


def _unknown_feature(triple: str, cpu: str, flag: str, text: str) -> TargetError:
    near = difflib.get_close_matches(flag[1:], _some_features(triple), n=4, cutoff=0.7)
    return TargetError(
        f"target `{text}`: LLVM knows no feature `{flag[1:]}` of a {cpu}",
        f"did you mean {', '.join(flag[0] + name for name in near)}?"
        if near
        else "leave it out; `llc -mattr=help` of LLVM lists what there is",
    )


def _implied_features(triple: str, cpu: str) -> tuple[str, ...]:
    # LLVM tunes Intel's cores and the generic level for 256-bit vectors, and would split 512-bit
    # kernels. Of the presets and the levels it need not be asked, which would load TVM.
    if triple.startswith("aarch64") or cpu in {"x86-64", "x86-64-v2", "x86-64-v3"}:
        return ()
    split = cpu == "x86-64-v4" or "prefer-256-bit" in _cpu_features(triple, cpu)
    return ("-prefer-256-bit",) if split else ()


def _x86_level(cpu: str) -> int:
    """Give the psABI level that holds all of a core's instructions which LLVM would choose."""
    if cpu in _LEVELS:
        return _LEVELS.index(cpu) + 1
    has = _cpu_features("x86_64-linux-gnu", cpu)
    marks = {4: {"avx512f"}, 3: {"avx", "avx2", "fma", "bmi2"}, 2: {"sse4.2", "ssse3", "popcnt"}}
    return next((level for level, names in marks.items() if names & has), 1)


def _host_arch() -> str:
    machine = platform.machine().lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)


@cache
def _host_cpu() -> str:
    """The x86-64 level of this machine (psABI), or the Arm core by its part number."""
    if _host_arch() == "aarch64":
        part = re.search(r"CPU part\s*:\s*(0x[0-9a-f]+)", _cpuinfo())
        return ARM_CORES.get(part[1] if part else "", "generic")
    flags = _host_flags()
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags:
        return "x86-64-v4"
    if {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"} <= flags:
        return "x86-64-v3"
    return "x86-64-v2" if {"sse4_2", "popcnt", "ssse3"} <= flags else "x86-64"


def _is_this_machine(triple: str, cpu: str) -> bool:
    """Whether a core is this machine's by name, or an x86-64 level that this machine has."""
    if triple != f"{_host_arch()}-linux-gnu":
        return False
    own = _host_cpu()
    return cpu == own or (own in _LEVELS and cpu in _LEVELS[: _LEVELS.index(own)])


def _host_cores() -> int:
    return min(os.cpu_count() or 1, MOST_THREADS)


def _host_flags() -> frozenset[str]:
    """What /proc/cpuinfo of an x86-64 machine lists."""
    line = re.search(r"^flags\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE)
    return frozenset(line[1].split() if line else ())


def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")


# What AArch64 cores of the last years have and a Cortex-A72 has not (LLVM's names).
_ARM_EXTENSIONS = frozenset((
    "bf16",
    "dotprod",
    "fp16fml",
    "fullfp16",
    "i8mm",
    "lse",
    "rdm",
    "sme",
    "sve",
    "sve2",
))

# What LLVM chooses instructions by without being asked -> what Linux calls it in /proc/cpuinfo
# (arch/x86/include/asm/cpufeatures.h, arch/arm64/kernel/cpuinfo.c). What is missing here is not
# looked for.
_CPUINFO_FLAGS: Mapping[str, Mapping[str, str]] = {
    "x86_64": {
        **{
            name: name
            for name in (
                "avx", "avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512ifma",
                "avx512vbmi", "avx512vl", "bmi2", "f16c", "fma", "fma4", "gfni", "movbe",
                "popcnt", "ssse3", "tbm", "vaes", "vpclmulqdq", "xop",
            )
        },
        "amx-bf16": "amx_bf16",
        "amx-int8": "amx_int8",
        "amx-tile": "amx_tile",
        "avx512bf16": "avx512_bf16",
        "avx512bitalg": "avx512_bitalg",
        "avx512fp16": "avx512_fp16",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512vnni": "avx512_vnni",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "avxvnni": "avx_vnni",
        "bmi": "bmi1",
        "sse4.2": "sse4_2",
    },
    "aarch64": {
        "bf16": "bf16",
        "dotprod": "asimddp",
        "fullfp16": "asimdhp",
        "i8mm": "i8mm",
        "lse": "atomics",
        "rdm": "asimdrdm",
        "sme": "sme",
        "sve": "sve",
        "sve2": "sve2",
    },
}  # fmt: skip

# "CPU part" of /proc/cpuinfo -> core (Arm's technical reference manuals, MIDR_EL1).
ARM_CORES: Mapping[str, str] = {
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
}


def _host() -> TargetSpec:
    if _host_arch() not in _KNOWN_ARCHES:
        raise TargetError(
            f"this machine is a {_host_arch()}, which is not supported",
            "use x86-64 or aarch64 Linux",
        )
    cpu = _host_cpu()
    triple = f"{_host_arch()}-linux-gnu"
    return TargetSpec(triple, cpu, _implied_features(triple, cpu), _host_cores())
