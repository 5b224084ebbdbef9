# SPDX-License-Identifier: Apache-2.0
"""A network as a C library that needs nothing: no interpreter, no runtime, no TVM on the device."""

from tvmattend.standalone.emit import StandaloneFiles, emit
from tvmattend.standalone.toolchain import Libc

__all__ = ["Libc", "StandaloneFiles", "emit"]
