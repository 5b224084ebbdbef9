# SPDX-License-Identifier: Apache-2.0
"""Runs inside the emulated board: one inference in TVM's virtual machine, marked for the model.

python bundle_guest.py BUNDLE THREADS CACHES     CACHES: 1 if they are modelled, 0 if not
"""

import os
import sys
from contextlib import suppress

_MARKER = 0x0A720000


def _mark(phase: int) -> None:
    with suppress(OSError):  # no such file: the plugin has seen the call
        os.close(_MARKER + phase)


def _main() -> None:
    bundle, threads, caches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # The board has four cores, however many this machine has.
    os.sched_getaffinity = lambda _: set(range(max(4, threads)))
    sys.dont_write_bytecode = True
    sys.path.insert(0, bundle)
    import tvmattend_runtime  # type: ignore[import-not-found]

    # The host has compared the files with the manifest; here it would take seconds.
    tvmattend_runtime.check_files = lambda *_: None
    net = tvmattend_runtime.load(bundle, threads)
    arrays, _ = net.golden()[0]
    if caches:  # an inference to warm them; arithmetic is what takes long under QEMU
        _mark(1)
        net(*arrays)
    _mark(2)
    net(*arrays)
    _mark(3)


_main()
