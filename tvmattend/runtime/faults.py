# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on a device: one class for each kind, with an exit code and a hint."""

from __future__ import annotations

import re

# What moves a terminal's cursor, and halves of characters, which cannot be encoded.
UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"


class DeviceError(Exception):
    """What went wrong, in one line, and what to do about it, in another (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(_printable(message))
        self.hint = _printable(hint)


def _printable(text: str) -> str:
    """Make one line, for a terminal, of a text that quotes what a file holds."""
    line = re.sub("[\t\n\v\f\r]+", " ", text)
    return re.sub(UNPRINTABLE, lambda found: f"\\x{ord(found[0]):02x}", line)


class ToolMissingError(DeviceError):
    """A Python package that is needed is not installed."""

    exit_code = 10


class BundleError(DeviceError):
    """The bundle is missing, damaged, or of a newer schema."""

    exit_code = 14


class BundleMismatchError(DeviceError):
    """The bundle is sound, but made for another machine or another runtime."""

    exit_code = 15


class ValidationError(DeviceError):
    """Outputs differ from the reference by more than the tolerance."""

    exit_code = 16


class InputError(DeviceError):
    """An input of the wrong shape, dtype, layout or file type."""

    exit_code = 17


class SignatureError(DeviceError):
    """A signature that is missing or does not fit, or a key that cannot be read."""

    exit_code = 23


def load_hint(error: Exception, other: str) -> str:
    """Say what to do where the loader refuses a library: of one reason it says too little."""
    if "failed to map segment" in str(error):
        return "its file system may be mounted noexec: copy the bundle to another one"
    return other
