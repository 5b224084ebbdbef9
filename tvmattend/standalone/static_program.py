# SPDX-License-Identifier: Apache-2.0
"""A bundle's static library as a program of its own: runs a musl bundle where Python has glibc."""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tvmattend.errors import ValidationError
from tvmattend.runtime.network import Network, check_files, read_manifest
from tvmattend.standalone.source import golden_program
from tvmattend.standalone.toolchain import Toolchain
from tvmattend.target import TargetSpec

_TIMEOUT_SECONDS = 600  # of one inference, emulated


@contextmanager
def open_static(
    bundle: Path, target: TargetSpec, emulator: Sequence[str] = ()
) -> Iterator[Network]:
    """Link the static library of a standalone bundle into a program, and give it as a network.

    Args:
        bundle: Its directory.
        target: What it was built for.
        emulator: A command that runs programs of the target, where this machine is another.

    Raises:
        BundleError: The bundle is missing or damaged.
        CompileError: The program does not link.
        ToolMissingError: Zig is not installed.
    """
    manifest = read_manifest(bundle)
    check_files(bundle, manifest["files"])
    static = bundle.resolve() / Path(manifest["library"]).with_suffix(".a")
    with tempfile.TemporaryDirectory(prefix="tvmattend-golden-") as scratch:
        source, program = Path(scratch) / "golden.c", Path(scratch) / "golden"
        prefix = static.stem.removeprefix("lib")
        source.write_text(golden_program(prefix), encoding="utf-8")
        Toolchain(target, manifest["libc"]).program(source, static, program)
        yield Network(bundle, manifest, _Executor([*emulator, str(program)], manifest))


class _Executor:
    """Runs the program once for each inference."""

    def __init__(self, command: list[str], manifest: dict[str, Any]) -> None:
        self.threads = int(manifest["threads"])
        self._command = [*command, str(self.threads)]
        self._outputs = manifest["outputs"]

    def run(self, inputs: Sequence["np.ndarray[Any, Any]"]) -> list["np.ndarray[Any, Any]"]:
        try:
            done = subprocess.run(
                self._command,
                input=b"".join(array.tobytes() for array in inputs),
                capture_output=True,
                check=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            last = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
            code = getattr(error, "returncode", f"none after {_TIMEOUT_SECONDS} s")
            raise ValidationError(
                f"the network as a program failed (exit code {code}) {' '.join(last)}",
                "do not deploy the bundle, and report it",
            ) from error
        results, at = [], 0
        for spec in self._outputs:
            array = np.frombuffer(done.stdout, spec["dtype"], int(np.prod(spec["shape"])), at)
            results.append(array.reshape(spec["shape"]))
            at += array.nbytes
        return results
