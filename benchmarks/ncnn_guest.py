# SPDX-License-Identifier: Apache-2.0
"""Runs inside the emulated board: one inference of an ncnn network, marked for the machine model.

The options and the two pool allocators are those of ncnn's own benchmark, whose figures were
published; weights are empty (zero), inputs 0.01, as there.
"""

import os
import sys
from contextlib import suppress

import ncnn

_MARKER = 0x0A720000


def _mark(phase):
    with suppress(OSError):  # no such file: the plugin has seen the call
        os.close(_MARKER + phase)


def _main():
    path, (width, height, channels, threads) = sys.argv[1], map(int, sys.argv[2:6])
    blobs, workspace = ncnn.PoolAllocator(), ncnn.PoolAllocator()
    for pool in (blobs, workspace):
        pool.set_size_compare_ratio(0.0)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.blob_allocator = blobs
    net.opt.workspace_allocator = workspace
    net.load_param(path)
    net.load_model(ncnn.DataReaderFromEmpty())
    image = ncnn.Mat(width, height, channels)
    image.fill(0.01)

    def infer():
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], image)
        return extractor.extract(net.output_names()[0])

    infer()
    _mark(1)
    infer()
    _mark(2)
    infer()
    _mark(3)
    # ncnn crashes when Python frees the pools before what they hold.
    os._exit(0)


_main()
