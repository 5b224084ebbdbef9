# SPDX-License-Identifier: Apache-2.0
"""From what PyTorch or TVM raises to what a user can act on: the line, the node, the reason."""

import contextlib
import io
import logging
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch.fx import Node

from tvmattend.errors import ModelError, UnsupportedOperatorError

OTHERWISE = "express it with convolutions, pools, element-wise or linear operators"
# What PyTorch says where there is not that much memory, or an address for it.
_OF_MEMORY = re.compile("can't allocate memory|not enough memory|size calculation overflowed")
EMPTY = "an extent of its result is 0, and nothing computes a tensor of no numbers"


def first_line(error: BaseException) -> str:
    """Give the first line of an error that says something."""
    for line in str(error).splitlines():
        # TVM prints all that it knows of an operator, and its own script; their names say enough.
        text = re.sub(r'ir\.Op\(.*?name="([\w.]+)".*support_level=\d+\)', r"`\1`", line.strip())
        text = re.sub(r"\bT\.(?=(?:bool|u?int|float)\d*\b)", "", text)
        text = re.sub(r'\bR\.Tensor\(\(([\d, ]*?),?\), dtype="(\w+)"\)', r"\2 [\1]", text)
        text = re.sub(r'\bR\.const\(([^(),]+), "\w+"\)', r"\1", text)
        text = re.sub(r"\bR\.(?=[\w.]+\()", "", text)
        if text and not re.fullmatch(r"[-=*#\s]+", text):
            return text
    return type(error).__name__


def reason(error: BaseException) -> str:
    """Say why a converter failed; an assertion inside TVM says nothing to its user."""
    line = first_line(error)
    if re.search(r"Check failed|InternalError|null pointer|AST", line):
        return "TVM's importer does not take it with these arguments"
    return line.rstrip(".")


def user_line(error: BaseException) -> str:
    """Give `, at file:line` of the innermost frame that is the user's, if any."""
    quoted = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    ours = str(Path(__file__).parent)
    python = sysconfig.get_path("stdlib") + os.sep
    for file, line in [*quoted[::-1], *frames[::-1]]:
        parts = set(Path(file).parts)
        standard = file.startswith(python) and "site-packages" not in parts
        if not standard and not parts & {"torch", "onnx"} and not file.startswith((ours, "<")):
            return f", at {file}:{line}"
    return ""


def source_line(node: Node) -> str:
    """Give `file:line: code` of a node, from the innermost frame outside torch itself."""
    frames = re.findall(
        r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)',
        str(node.meta.get("stack_trace") or ""),
    )
    own = [frame for frame in frames if "/torch/nn/" not in frame[0].replace("\\", "/")]
    if not frames:
        return ""
    file, line, code = (own or frames)[-1]
    return f"{file}:{line}: {code.strip()}"


def unsupported(node: Node, why: str) -> UnsupportedOperatorError:
    """Make the error for a node that cannot be imported."""
    place = source_line(node)
    return UnsupportedOperatorError(
        f"operator `{operator_name(node)}` cannot be imported" + (f", at {place}" if place else ""),
        f"{why}; {OTHERWISE}",
    )


def operator_name(node: Node) -> str:
    """Give `aten::fft_fft2` of a node's target."""
    name = getattr(node.target, "name", None)
    return str(name()) if callable(name) else str(getattr(node.target, "__name__", node.target))


@contextlib.contextmanager
def in_memory(what: str, options: str) -> Iterator[None]:
    """Tell what does not fit into memory.

    Args:
        what: It, in words.
        options: Those that make it smaller.

    Raises:
        ModelError: There is not that much memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for it
        if isinstance(error, RuntimeError) and not _OF_MEMORY.search(str(error)):
            raise
        raise ModelError(f"{what} does not fit into memory", f"give a smaller {options}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user what PyTorch's export says on its way.

    A deprecation that PyTorch 2.13 causes in its own code; its log; and the graph that it prints
    before the error that says why. What a run without an error prints is passed on.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        logger.setLevel(level)
