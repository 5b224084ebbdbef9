# SPDX-License-Identifier: Apache-2.0
"""C, assembly and objects -> one relocatable object, a static and a shared library.

Zig compiles, links and archives for every target, with the C library of that target inside: glibc
2.28 (Debian 10 and later) or musl. `--cross-compiler CMD` compiles and links instead; joining the
objects and archiving stay with Zig, for which they are the same on every target.
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvmattend.codegen.link import GLIBC, link_command, remedy, run_tool
from tvmattend.errors import CompileError, ToolMissingError
from tvmattend.target import TargetSpec

Libc = Literal["glibc", "musl"]

# What TVM adds to every object and nothing of ours uses: debugging information without lines, and
# half-precision conversions under the compiler runtime's own names.
_JOIN_SCRIPT = """\
SECTIONS {
  /DISCARD/ : { *(.debug*) *(.rela.debug*) *(.comment) *(.llvm_addrsig) *(.text.tvm.fp16.conv) }
}
"""


@dataclass(frozen=True)
class Toolchain:
    """Compiler and linker for one target and C library.

    Attributes:
        target: Decides the architecture.
        libc: The C library of the target.
        cross_compiler: A compiler driver with its options, for both; None for Zig.
    """

    target: TargetSpec
    libc: Libc = "glibc"
    cross_compiler: str | None = None

    @property
    def system(self) -> str:
        """C library and version, e.g. `glibc 2.28`."""
        return f"glibc {GLIBC}" if self.libc == "glibc" else "musl"

    def driver(self) -> list[str]:
        """The compiler driver, without files.

        Raises:
            ToolMissingError: It is not there.
        """
        if self.cross_compiler is not None or self.libc == "glibc":
            command = link_command(self.target, self.cross_compiler)
            # For programs and libraries alike; what is stripped is said where it is.
            return [word for word in command if word != "-s"]
        return [*_zig("cc"), "-target", f"{self.target.arch}-linux-musl"]

    def compile(self, source: Path, output: Path, *flags: str) -> None:
        """Compile one C or assembly file.

        Raises:
            CompileError: The compiler refused it.
            ToolMissingError: There is no compiler.
        """
        own = ["-std=c11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", *self._machine()]
        command = [*self.driver(), *own, *flags, "-c", source.name, "-o", str(output)]
        # From the file's directory: what it includes lies beside it, and no path gets inside.
        self._run(command, f"compiling {source.name}", source.parent)
        if not output.is_file():
            raise CompileError(
                f"`{command[0]}` said nothing and wrote no {output.name}",
                remedy(self.cross_compiler),
            )

    def join(self, objects: Sequence[Path], output: Path) -> None:
        """Make one relocatable object, without what nobody needs.

        Raises:
            CompileError: The linker refused them.
            ToolMissingError: Zig is not installed.
        """
        script = output.with_suffix(".ld")
        script.write_text(_JOIN_SCRIPT, encoding="ascii")
        command = [*_zig("ld.lld"), "-r", "-T", str(script), "-o", str(output)]
        self._run([*command, *map(str, objects)], f"joining {output.name}")
        script.unlink()

    def archive(self, objects: Sequence[Path], output: Path) -> None:
        """Make a static library."""
        output.unlink(missing_ok=True)  # `ar` would add to it
        command = [*_zig("ar"), "rcsD", str(output), *map(str, objects)]
        self._run(command, f"archiving {output.name}")

    def link(self, objects: Sequence[Path], output: Path) -> None:
        """Make a shared library, in which nothing is left undefined.

        Raises:
            CompileError: The linker refused them.
            ToolMissingError: There is no linker.
        """
        # Not stripped: `perf` and the machine model tell the kernels apart by their local names.
        options = [f"-Wl,-soname,{output.name}", "-Wl,-z,defs", "-Wl,-z,now"]
        command = [*self.driver(), "-shared", "-fPIC", *options]
        libraries = ["-Wl,--as-needed", "-lm", "-lpthread"]
        command += ["-o", str(output), *map(str, objects), *libraries]
        self._run(command, f"linking {output.name}")

    def program(self, source: Path, library: Path, output: Path) -> None:
        """Compile one C file and link it with a static library of ours; needs nothing to run.

        Raises:
            CompileError: The compiler refused it.
            ToolMissingError: There is no compiler.
        """
        options = ["-std=c11", "-O2", "-static", f"-I{library.parent}"]
        files = [str(source), str(library), "-lm", "-lpthread"]
        self._run([*self.driver(), *options, *files, "-o", str(output)], f"linking {output.name}")

    def _run(self, command: Sequence[str], what: str, directory: Path | None = None) -> None:
        run_tool(command, what, self.cross_compiler, directory)

    def _machine(self) -> list[str]:
        if self.target.arch == "x86_64":
            # Without it, `_Thread_local` would make the library ask for the dynamic linker.
            return ["-mtls-dialect=gnu2"]
        # Plain exclusive loads and stores: the others need functions of the compiler's runtime.
        return ["-mno-outline-atomics"]


def _zig(tool: str) -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        raise ToolMissingError(
            "a standalone library needs Zig, which is not installed",
            f"`{sys.executable} -m pip install ziglang`",
        )
    return [sys.executable, "-m", "ziglang", tool]
