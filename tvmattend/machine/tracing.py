# SPDX-License-Identifier: Apache-2.0
"""Run an aarch64 Linux program under QEMU with the plugin, and read what it wrote."""

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmattend.cache import Progress
from tvmattend.device.emulated import find_qemu
from tvmattend.errors import InputError, StorageError, ToolMissingError, TvmattendError
from tvmattend.machine.board_files import write_board_files
from tvmattend.machine.instructions import require_llvm
from tvmattend.machine.native import native
from tvmattend.machine.parameters import CLOCK_HZ
from tvmattend.machine.trace import THREADS, Trace, read_trace
from tvmattend.storage import no_room, storage_fault

# QEMU names the option without its dash.
_NO_PLUGINS = re.compile(r"^qemu\S*: unknown option '?-?plugin'?", re.MULTILINE | re.IGNORECASE)
# As the plugin says it.
_UNWRITTEN = re.compile(r"^a72_plugin: cannot write: errno (\d+)$", re.MULTILINE)
_ROOM_BYTES = 1 << 20  # a disk on which a trace had no room has less

_AARCH64 = 183  # e_machine of the ELF header
_NAMES = {62: "x86-64", 3: "x86", 40: "32-bit Arm", 243: "RISC-V"}


class ProgramError(TvmattendError):
    """The traced program failed; its exit code becomes ours."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Settings:
    """How to trace.

    Attributes:
        caches: Whether accesses go through the caches.
        markers: Whether only what the program marks is counted.
        window: Blocks in a row that are sampled.
        most: Windows of a thread that are kept, spread evenly over what it did; 0 for none.
        sysroot: Where the guest's `/lib` is; other files are this machine's.
        board: What `write_board_files` made of both; made anew for a run if None.
        clock_hz: That the board says it has.
        timeout: Seconds that the program may take, or None.
        keep: Where to leave a copy of what the plugin wrote, for `read_trace`.
    """

    caches: bool = True
    markers: bool = True
    window: int = 512
    most: int = 4096
    sysroot: Path | None = None
    board: Path | None = None
    clock_hz: float = CLOCK_HZ
    timeout: float | None = None
    keep: Path | None = None


def trace(
    command: Sequence[str],
    settings: Settings,
    environment: Mapping[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> tuple[Trace, str]:
    """Run a program to its end.

    Args:
        command: An aarch64 executable and its arguments.
        settings: See `Settings`.
        environment: The whole environment, or this process's.
        progress: Told about compiling the plugin.

    Returns:
        The trace, and what the program printed to stdout.

    Raises:
        InputError: The program is not there, is for another architecture, became another one,
            or does its work in threads that have no record.
        ProgramError: It exited with an error, or was killed.
        StorageError: There is no room for the trace.
        ToolMissingError: No qemu, or one without plugins.
        subprocess.TimeoutExpired: It took longer than the settings allow, and was killed.
    """
    qemu = find_qemu()
    require_llvm()
    executable = find_program(command[0])
    with tempfile.TemporaryDirectory(prefix="tvmattend-trace-") as place:
        out = Path(place) / "trace"
        plugin = [
            str(native(progress).plugin),
            f"out={out}",
            f"cache={'on' if settings.caches else 'off'}",
            f"markers={'on' if settings.markers else 'off'}",
            f"window={settings.window}",
            f"most={settings.most}",
            f"parent={os.getpid()}",
        ]
        if "," in str(out) + plugin[0]:
            raise InputError(
                f"QEMU cannot take a path with a comma: {place}", "set TMPDIR or TVMATTEND_CACHE"
            )
        board = settings.board
        if board is None:
            board = Path(place) / "board"
            board.mkdir()
            write_board_files(board, settings.sysroot, settings.clock_hz)
        root = ["-L", str(board)]
        done = subprocess.run(
            [qemu, "-cpu", "cortex-a72", "-plugin", ",".join(plugin), *root, executable,
             *command[1:]],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", env=None if environment is None else dict(environment),
            timeout=settings.timeout,
        )  # fmt: skip
        _judge(done, command[0])
        if not out.is_file():
            raise _untraced(done.stderr, Path(place), command[0])
        if settings.keep is not None:
            settings.keep.parent.mkdir(parents=True, exist_ok=True)
            for name in ("", ".samples"):
                shutil.copyfile(f"{out}{name}", f"{settings.keep}{name}")
        run = read_trace(out, settings.caches)
    if run.crowd:
        _say_crowd(run, progress)
    if run.children:
        started = f"{run.children} process{'es' * (run.children > 1)}"
        progress(
            f"note: what it started ({started}) is not in the estimate, nor is the time that it "
            "waits for it"
        )
    return run, done.stdout


def _say_crowd(run: Trace, progress: Progress) -> None:
    """Say what is rough of a run with more threads than there are records."""
    alone = [run.instructions(thread) for thread in run.threads]
    shared, longest = run.instructions(THREADS), max(alone, default=0)
    # The estimate's time is the longest thread's, which the shared record cannot tell.
    if shared > sum(alone) or shared > 2 * longest * (run.crowd - THREADS):
        raise InputError(
            f"of {run.crowd} threads, those beyond {THREADS} did most of the work, and they have "
            "no record each",
            f"let it start at most {THREADS} threads",
        )
    progress(
        f"note: {run.crowd} threads: those beyond {THREADS} share a record and a cache, so their "
        "cache misses are rough, and none of them counts as the longest"
    )


def _untraced(text: str, place: Path, name: str) -> TvmattendError:
    """Why there is no trace of a program that ended well."""
    told = _UNWRITTEN.search(text)
    known = None
    if told is not None and int(told[1]):
        code = int(told[1])
        known = storage_fault(OSError(code, os.strerror(code), str(place.parent)))
    known = known or no_room(place, _ROOM_BYTES)
    if known is not None:
        return StorageError(f"the trace of {name} has no room: {known}", known.hint)
    if told is not None:
        return StorageError(f"cannot write the trace of {name} to {place.parent}", "set TMPDIR")
    return InputError(
        f"{name} left no trace: it replaced itself by another program (exec)",
        "give that program itself, not one that starts it",
    )


def _judge(done: subprocess.CompletedProcess[str], name: str) -> None:
    if done.returncode == 0:
        return
    text = done.stderr
    if _NO_PLUGINS.search(text):
        raise ToolMissingError(
            "this `qemu-aarch64` was built without plugins",
            "Debian 12's package `qemu-user` has them, Debian 13's has not: README.md says how to "
            "build one; the first on PATH is taken",
        )
    if "Could not load plugin" in text:
        raise ToolMissingError(
            f"QEMU does not load the plugin: {text.strip().splitlines()[0]}",
            "QEMU 7.2 and 10.0 are known to load it; the first on PATH is taken",
        )
    told = done.stdout + text
    sys.stderr.write(told if told.endswith("\n") or not told else f"{told}\n")
    killed = done.returncode < 0 or "uncaught target signal" in text
    code = 128 - done.returncode if done.returncode < 0 else done.returncode
    if "Could not open" in text and "/lib/ld-" in text:
        hint = (
            "give the directory of its libraries: --sysroot (/usr/aarch64-linux-gnu, of Debian's "
            "package libc6-arm64-cross)"
        )
    else:
        hint = "its output is above; it must run by itself under `qemu-aarch64 -cpu cortex-a72`"
    how = "was killed" if killed else "failed"
    raise ProgramError(f"{name} {how} under QEMU (exit code {code})", hint, code)


def find_program(name: str) -> str:
    """Find a program and read its ELF header; gives its path.

    Raises:
        InputError: It is not there, cannot be executed, or is for another architecture.
    """
    path = name if os.sep in name else shutil.which(name)
    if path is not None and Path(path).is_dir():
        raise InputError(f"{path} is a directory", "give the path of an aarch64 executable")
    if path is None and Path(name).is_file():
        raise InputError(
            f"there is no program `{name}` on $PATH", f"for the file here write ./{name}"
        )
    if path is None or not Path(path).is_file():
        raise InputError(f"there is no program `{name}`", "give the path of an aarch64 executable")
    if not os.access(path, os.X_OK):
        raise InputError(f"{path} may not be executed", "`chmod +x` it, if it is a program")
    with Path(path).open("rb") as stream:
        header = stream.read(20)
    if header[:4] != b"\x7fELF" or len(header) < 20:
        kind = "a script" if header[:2] == b"#!" else "not an ELF executable"
        raise InputError(
            f"{path} is {kind}", "give an aarch64 executable: for a script, its interpreter"
        )
    (machine,) = struct.unpack_from("<H", header, 18)
    if machine != _AARCH64:
        raise InputError(
            f"{path} is for {_NAMES.get(machine, f'ELF machine {machine}')}, not aarch64",
            "give an aarch64 Linux executable",
        )
    return path
