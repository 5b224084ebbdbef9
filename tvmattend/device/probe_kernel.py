# SPDX-License-Identifier: Apache-2.0
"""The smallest library that proves a board: it adds two vectors, and it reads files.

Reading is a kernel because a plain TVM RPC server cannot do it: its `download` takes a file's size
first, and files of /proc have none (0.27 answers `basic_string::_M_replace_aux`).
"""

from pathlib import Path
from typing import Any

from tvmattend.codegen.link import Linker
from tvmattend.errors import CompileError
from tvmattend.target import TargetSpec

LENGTH = 64  # elements of float32: some whole vectors, and work for every core
PATH_BYTES = 256
FILE_BYTES = 65536

# Text, not decorated Python: the script's parser would read this file's source, and a type checker
# the script. `read_file` gives the number of bytes read, or -1. fread, unlike read, goes on until
# the end of a /proc file.
_SCRIPT = f"""
@I.ir_module
class Probe:
    @T.prim_func
    def add(
        a: T.Buffer(({LENGTH},), "float32"),
        b: T.Buffer(({LENGTH},), "float32"),
        c: T.Buffer(({LENGTH},), "float32"),
    ):
        T.func_attr({{"global_symbol": "add", "tirx.noalias": True}})
        for i in T.parallel({LENGTH}):
            c[i] = a[i] + b[i]

    @T.prim_func
    def read_file(
        path: T.Buffer(({PATH_BYTES},), "uint8"),
        content: T.Buffer(({FILE_BYTES},), "uint8"),
        count: T.Buffer((1,), "int64"),
    ):
        T.func_attr({{"global_symbol": "read_file"}})
        stream = T.call_extern("handle", "fopen", path.data, "rb")
        if T.isnullptr(stream):
            count[0] = T.int64(-1)
        else:
            count[0] = T.call_extern(
                "int64", "fread", content.data, T.int64(1), T.int64({FILE_BYTES}), stream
            )
            T.evaluate(T.call_extern("int32", "fclose", stream))
"""


def build_probe(target: TargetSpec, output: Path, cross_compiler: str | None = None) -> None:
    """Compile and link the library.

    Args:
        target: The board to be.
        output: The `.so` to write.
        cross_compiler: See `link_shared`.

    Raises:
        ToolMissingError: There is no linker.
        CompileError: TVM or the linker refused.
    """
    import tvm
    from tvm.script import from_source

    try:
        executable = tvm.compile(from_source(_SCRIPT), target=target.to_tvm())
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise CompileError(
            f"TVM cannot compile for {target.describe()}: {lines[-1] if lines else error}",
            "check --target",
        ) from error
    executable.export_library(str(output), fcompile=Linker(target, cross_compiler))


class ProbeModule:
    """The library, loaded on a board.

    Args:
        module: The remote module.
        device: The remote CPU.
    """

    def __init__(self, module: Any, device: Any) -> None:
        self._module = module
        self._device = device

    def add(self) -> bool:
        """Add two vectors there, and say whether the sums are right."""
        import numpy as np
        from tvm.runtime import tensor

        left = np.arange(LENGTH, dtype="float32")
        right = np.full(LENGTH, 0.5, dtype="float32")
        total = tensor(np.zeros(LENGTH, dtype="float32"), self._device)
        self._module["add"](tensor(left, self._device), tensor(right, self._device), total)
        return bool(np.array_equal(total.numpy(), left + right))

    def read(self, path: str) -> str:
        """Read a text file of the board (64 kB at most); empty if it cannot be opened."""
        import numpy as np
        from tvm.runtime import tensor

        name = np.zeros(PATH_BYTES, dtype="uint8")  # zeros also end the string for fopen
        encoded = np.frombuffer(path.encode(), dtype="uint8")
        name[: encoded.size] = encoded
        content = tensor(np.zeros(FILE_BYTES, dtype="uint8"), self._device)
        count = tensor(np.zeros(1, dtype="int64"), self._device)
        self._module["read_file"](tensor(name, self._device), content, count)
        size = max(0, int(count.numpy()[0]))
        return bytes(content.numpy()[:size]).decode(errors="replace").strip("\0\n ")
