# SPDX-License-Identifier: Apache-2.0
"""The Cortex-A72 without a board: execution counts, port model, caches, and what they add up to.

    libraries.py, bundles.py  what is run for a bundle; guest_programs.py compiles it
    tracing.py   a program under QEMU with a72_plugin.c -> trace.py: blocks, misses, samples;
                 a72_pace.h keeps its threads in step
    instructions.py  llvm-mca's ports and latencies, corrected from measurements of silicon;
                 answers.py keeps them on disk
    replay.py    the samples through a72_core.c, an out-of-order core -> cycles of each block
    estimate.py  counts times cycles -> the time, in all and by function, with what bounds it
    parameters.py  the memory system's numbers; fitting.py fits them on published latencies

Known gaps, all of which make the estimate differ from silicon: write streaming (a Cortex-A72 that
stores whole lines in a row stops fetching them, so a large memcpy takes half of what is estimated;
modelled after the reference manual's thresholds it made every network too fast, see
benchmarks/NOTES.md); TLBs and the order of stores (modelled, they bought nothing and went); values
(a division's time depends on its operands; the longest is assumed); code misses; the operating
system; parallel regions are as long as the share of the thread that starts them.
"""
