# SPDX-License-Identifier: Apache-2.0
"""What a board is, found out by running a kernel on it, before anything expensive starts."""

import json
import re
import struct
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tvmattend.device.conditions import conditions_from
from tvmattend.device.endpoint import (
    Endpoint,
    check_reachable,
    close_session,
    connect,
    parse_endpoint,
    reason,
)
from tvmattend.device.killable import KillableWorker
from tvmattend.device.probe_kernel import ProbeModule, build_probe
from tvmattend.device.sending import send
from tvmattend.device.serving.conditions import read_conditions
from tvmattend.device.serving.wire import BOARD_FUNCTION
from tvmattend.errors import BoardMismatchError, BoardUnreachableError, CompileError, printable
from tvmattend.target import ARM_CORES, TargetSpec

# e_machine of an ELF header, for the architectures that boards and hosts have.
_ELF_MACHINES = {3: "i386", 40: "arm (32 bit)", 62: "x86_64", 183: "aarch64", 243: "riscv"}

# How a server ends a session at its limit (the text of the error that the client gets).
SESSION_TIMEOUT = "RPCSessionTimeoutError"

# For the first look at a board; an emulated one needs some ten.
LOOK_SECONDS = 60.0
# Zig builds its C library the first time.
_BUILD_SECONDS = 300.0


@dataclass(frozen=True)
class BoardInfo:
    """What is known of a board.

    Attributes:
        endpoint: Where it was reached.
        machine: Architecture of the process that serves there: `aarch64`, `x86_64`.
        core: `cortex-a72`, or several joined by `+`; empty if unknown (and on x86).
        core_count: Processors that Linux shows; 0 if unknown.
        model: The board's or processor's own name; may be empty.
        emulated: Whether a kernel's time says nothing about silicon.
        governor: Linux's frequency governor; empty if it shows none.
        clock_mhz: Frequency of core 0 at the time of asking, in MHz; 0 if unknown.
        tvm_version: Of the server, if it tells.
        ffi_version: Of the server's apache-tvm-ffi, if it tells.
        notes: What the user should know before measuring, one sentence each.
    """

    endpoint: str
    machine: str
    core: str = ""
    core_count: int = 0
    model: str = ""
    emulated: bool = False
    governor: str = ""
    clock_mhz: float = 0.0
    tvm_version: str = ""
    ffi_version: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "notes": list(self.notes)}

    def describe(self) -> str:
        """One line for a person."""
        parts = [self.model or self.machine]
        if self.core and self.core not in self.model:
            parts.append(self.core)
        if self.core_count:
            parts.append(f"{self.core_count} cores")
        if self.clock_mhz:
            parts.append(f"{self.clock_mhz:.0f} MHz")
        if self.governor:
            parts.append(f"governor {self.governor}")
        if self.emulated:
            parts.append("EMULATED")
        return f"{self.endpoint}: {', '.join(parts)}"


@dataclass(frozen=True)
class CpuInfo:
    """What /proc/cpuinfo says: the cores by name, how many, a model, and whether it is an x86's."""

    cores: tuple[str, ...]
    count: int
    model: str
    x86: bool


def parse_cpuinfo(text: str) -> CpuInfo:
    """Read /proc/cpuinfo of an Arm or x86 machine; parts that ARM_CORES lacks stay as numbers."""
    parts = re.findall(r"^CPU part\s*:\s*(0x[0-9a-f]+)", text, re.MULTILINE)
    cores = dict.fromkeys(ARM_CORES.get(part, part) for part in parts)
    # Raspberry Pi kernels end the file with `Model`; x86 names the processor for each of them.
    model = re.search(r"^(?:Model|model name)\s*:\s*(.+)$", text, re.MULTILINE)
    return CpuInfo(
        cores=tuple(cores),
        count=len(re.findall(r"^processor\s*:", text, re.MULTILINE)),
        model=model[1].strip() if model else "",
        x86=re.search(r"^vendor_id\s*:", text, re.MULTILINE) is not None,
    )


def probe(
    endpoint: Endpoint | str,
    target: TargetSpec,
    cross_compiler: str | None = None,
    timeout: float = LOOK_SECONDS,
) -> BoardInfo:
    """Reach a board, run a tiny kernel built for the target there, and say what the board is.

    Args:
        endpoint: A server or tracker, or `host:port` of a server.
        target: What the board is meant to be.
        cross_compiler: See `link_shared`.
        timeout: Seconds for the board; building the kernel, on this machine, comes before.

    Raises:
        BoardUnreachableError: Nothing answers there, or it stopped answering.
        NoFreeBoardError: The tracker has no board free.
        BoardMismatchError: The board cannot run code for the target.
        ToolMissingError: There is no linker.
        CompileError: TVM or the linker refused.
    """
    place = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
    check_reachable(place)  # before a process is even started
    with KillableWorker(quiet=True) as worker:
        content = built_probe(target, worker, cross_compiler)
        arguments = (place, content, target, timeout)
        found: BoardInfo = ask_of(place, worker, timeout, _reach_and_examine, arguments)
    return found


def built_probe(
    target: TargetSpec, worker: KillableWorker, cross_compiler: str | None = None
) -> bytearray:
    """Build what `examine` runs, in a worker process.

    Raises:
        ToolMissingError: There is no linker.
        CompileError: TVM or the linker refused, or the process ended.
    """
    with tempfile.TemporaryDirectory(prefix="tvmattend-probe-") as directory:
        library = Path(directory) / "probe.so"
        try:
            worker.call(_BUILD_SECONDS, build_probe, (target, library, cross_compiler))
        except (TimeoutError, ChildProcessError) as error:
            raise CompileError(
                f"no probe could be built for {target.describe()}: {error}",
                "is this machine out of memory, or very busy?",
            ) from error
        return bytearray(library.read_bytes())


def ask_of(
    place: Endpoint,
    worker: KillableWorker,
    seconds: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Any:
    """Have a worker process do something with a board, for so long.

    Raises:
        BoardUnreachableError: The board was silent, or what it said made no sense.
        TvmattendError: What the function raised.
    """
    try:
        return worker.call(seconds, function, arguments)
    except TimeoutError as error:
        raise _stuck(place, seconds) from error
    except ChildProcessError as error:
        raise BoardUnreachableError(
            f"{place}: what the board answered crashed TVM's client",
            "is it a TVM RPC server of 0.27, and nothing in between that changes what is sent?",
        ) from error
    except RuntimeError as error:
        if SESSION_TIMEOUT in str(error):
            raise _stuck(place, seconds) from error
        raise BoardUnreachableError(
            f"{place}: the session broke: {reason(error)}",
            "restart the server on the board, and see whether its disk or memory is full",
        ) from error


def _reach_and_examine(
    place: Endpoint, library: bytearray, target: TargetSpec, timeout: float
) -> BoardInfo:
    """Runs in a worker process; the server keeps the limit as well, and is free again after it."""
    session = connect(place, session_timeout=timeout)
    try:
        return examine(session, library, place, target)
    finally:
        close_session(session)


def examine(session: Any, library: bytearray, place: Endpoint, target: TargetSpec) -> BoardInfo:
    """Run the tiny kernel in a session that is open, and ask what the board is.

    Args:
        session: A session with the board; it stays open.
        library: What `build_probe` made for the target.
        place: Names the board in errors.
        target: What it is meant to be.

    Raises:
        BoardUnreachableError: The session broke.
        BoardFullError: There is no room for the kernel.
        BoardMismatchError: The board cannot run code for the target.
    """
    # A fresh name: replacing a library that is loaded crashes the session.
    name = f"probe-{uuid.uuid4().hex}.so"
    _step(place, lambda: send(session, place, library, name))
    kernel = ProbeModule(_load(session, name, place, target), session.cpu())
    _add(kernel, place, target)
    info: BoardInfo = _step(place, lambda: _describe(session, kernel, place, target))
    _step(place, lambda: session.remove(name))
    return info


def _add(kernel: ProbeModule, place: Endpoint, target: TargetSpec) -> None:
    try:
        right = kernel.add()
    except RuntimeError as error:
        if SESSION_TIMEOUT in str(error):
            raise _stuck(place) from error
        raise BoardMismatchError(
            f"{place}: a kernel for {target.name} crashed there ({reason(error)})",
            "the board's core may lack the target's instructions; check --target, and restart "
            "the server on the board if it is TVM's own",
        ) from error
    if not right:
        raise BoardMismatchError(
            f"{place}: a kernel for {target.name} gave wrong sums there",
            "the board's core may not be the target's; check --target",
        )


def _load(session: Any, name: str, place: Endpoint, target: TargetSpec) -> Any:
    """Load the library; a refusal does not end the session, so the board can say what it is."""
    try:
        return session.load_module(name)
    except RuntimeError as error:
        machine = _machine(session)
        if machine and machine != target.arch:
            hint = f"the target is {target.describe()}; give the board's own with --target"
            if machine == "arm (32 bit)" and target.arch == "aarch64":
                hint = "install a 64-bit operating system on the board"
            raise BoardMismatchError(
                f"{place}: the board is {machine}, the target is {target.arch}", hint
            ) from error
        raise BoardMismatchError(
            f"{place}: the board cannot load a library for {target.triple}: {reason(error)}",
            "its C library must be glibc 2.28 or later (Debian 10)",
        ) from error


def _machine(session: Any) -> str:
    """Architecture of the server's own executable: what it can load, whatever its kernel is."""
    try:
        header = bytes(session.download("/proc/self/exe"))[:20]
    except RuntimeError:
        return ""  # some other kind of server; the caller reports what the loader said
    if header[:4] != b"\x7fELF":
        return ""
    return _ELF_MACHINES.get(struct.unpack_from("<H", header, 18)[0], "of another architecture")


def _describe(session: Any, kernel: ProbeModule, place: Endpoint, target: TargetSpec) -> BoardInfo:
    told = server_says(session, BOARD_FUNCTION)
    cpu = parse_cpuinfo(kernel.read("/proc/cpuinfo"))
    # qemu-user shows the files of the machine below, and Linux the name of what really runs.
    below = kernel.read("/proc/self/comm")
    emulated = bool(told.get("emulated")) or below.startswith("qemu-")
    emulated = emulated or (cpu.x86 and target.arch == "aarch64")
    core = words(told.get("core")) or ("" if emulated else "+".join(cpu.cores))
    model = words(kernel.read("/proc/device-tree/model") or cpu.model)
    now = conditions_from({} if emulated else read_conditions(kernel.read))
    info = BoardInfo(
        endpoint=str(place),
        machine=target.arch,  # it has just run the target's code
        core=core,
        core_count=cpu.count,
        model=f"emulated {core or target.arch} on {model}" if emulated else model,
        emulated=emulated,
        governor=now.governor,
        clock_mhz=now.clock_mhz or 0.0,
        tvm_version=words(told.get("tvm")),
        ffi_version=words(told.get("tvm_ffi")),
    )
    return BoardInfo(**{**vars(info), "notes": notes(info, target)})


def notes(info: BoardInfo, target: TargetSpec) -> tuple[str, ...]:
    """Say what a user should know before measuring on this board for this target."""
    found = []
    if info.emulated:
        found.append("the board is emulated: its times say nothing about silicon")
    cores = info.core.split("+") if info.core else []
    if cores and info.machine == "aarch64" and target.cpu != "generic":
        if target.cpu not in cores:
            found.append(f"the board's core is {info.core}, the target's is {target.cpu}")
        elif len(cores) > 1:
            found.append(f"the board mixes cores ({info.core}): pin the server to one kind")
    if not info.emulated and 0 < info.core_count < target.num_cores:
        found.append(f"the board has {info.core_count} cores, the target {target.num_cores}")
    if info.governor and info.governor != "performance":
        found.append(f"the frequency governor is `{info.governor}`: times will vary")
    return tuple(found)


def server_says(session: Any, function: str) -> dict[str, Any]:
    """What a function of a server of ours answers; nothing if it is TVM's, or talks nonsense."""
    try:
        told = json.loads(str(session.get_function(function)()))
    except (AttributeError, ValueError, RecursionError):  # the first: there is no such function
        return {}
    return told if isinstance(told, dict) else {}


def words(told: Any) -> str:
    """What a board gave for a text, fit for a terminal; nothing if it is none."""
    return printable(told) if isinstance(told, str) else ""


def _step(place: Endpoint, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except RuntimeError as error:
        if SESSION_TIMEOUT in str(error):
            raise _stuck(place) from error
        raise BoardUnreachableError(
            f"{place}: the session broke: {reason(error)}", "restart the server on the board"
        ) from error


def _stuck(place: Endpoint, seconds: float = 0.0) -> BoardUnreachableError:
    waited = f" (no answer within {seconds:g} s)" if seconds else ""
    return BoardUnreachableError(
        f"{place}: the board stopped answering{waited}", "restart the server on the board"
    )
