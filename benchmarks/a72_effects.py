# SPDX-License-Identifier: Apache-2.0
"""What each effect of the Cortex-A72 model buys: the error without it, all numbers fitted anew.

    python benchmarks/a72_validation.py --published DIR --threads 1 --traces TRACES
    python benchmarks/a72_effects.py --published DIR --traces TRACES

One thread, all networks of DIR; the traces are those that the first command kept.
"""

import argparse
import functools
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from a72_validation import ONE_THREAD, model, read_published

from tvmattend.machine.fitting import fit, mean_error
from tvmattend.machine.instructions import Cost, costs_of
from tvmattend.machine.parameters import SHIPPED
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import Trace, read_trace

# Samples of a network: fewer than the validation's, as there are a dozen fits.
_BYTES = 400_000
_BLOCK_WORD = 0x80000000


def narrow(cost: Cost) -> Cost:
    """A 128-bit result takes one place of the three a cycle, as in LLVM's model."""
    return replace(cost, slots=1) if cost.operands.kind == "alu" and cost.slots == 2 else cost


def own_pipeline(cost: Cost) -> Cost:
    """SADALP beside the multiplier, as in LLVM's model."""
    if re.match(r"[su]adalp\t", cost.text):
        return replace(cost, ports=(("F1", 1),))
    return cost


def structures(plain: dict[str, Cost], cost: Cost) -> Cost:
    """Loads and stores as LLVM has them."""
    return plain[cost.text] if cost.operands.kind in {"load", "store"} else cost


def forwarding(cost: Cost) -> Cost:
    """An accumulation waits for the whole of the one before."""
    return replace(cost, forward=0)


def without_misses(trace: Trace) -> Trace:
    """Every access hits L1."""
    kept, at = [], 0
    while at + 12 <= len(trace.samples):
        head, thread, count = struct.unpack_from("<3I", trace.samples, at)
        words = struct.unpack_from(f"<{count}I", trace.samples, at + 12)
        blocks = [word for word in words if word & _BLOCK_WORD]
        kept.append(struct.pack(f"<{3 + len(blocks)}I", head, thread, len(blocks), *blocks))
        at += 12 + 4 * count
    return replace(trace, samples=b"".join(kept))


def programs(
    traces: list[Trace], change: Callable[[Cost], Cost] | None = None, **options: bool
) -> list[Program]:
    """Prepare the traces, with changed costs."""
    made = [Program(trace, **{"quick_divide": True, **options}) for trace in traces]
    for program in made if change else ():
        program.costs = {word: change(cost) for word, cost in program.costs.items()}
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True, metavar="DIR")
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR")
    given = parser.parse_args()
    networks = read_published(given.published)
    traces = [
        read_trace(given.traces / "1" / f"{network.name}.trace").thinned(_BYTES)
        for network in networks
    ]
    published = [network.published[1] for network in networks]
    words = {word for trace in traces for block in trace.blocks.values() for word in block.words}
    plain = {cost.text: cost for cost in costs_of(words, corrected=False).values()}
    slow = [name for name in ONE_THREAD if name != "store_line"]
    same, every = programs(traces), ONE_THREAD
    no_misses = programs([without_misses(trace) for trace in traces])
    table = (
        ("everything", same, SHIPPED, every),
        ("no caches: every access hits L1", no_misses, SHIPPED, ()),
        ("no corrections of LLVM's numbers", programs(traces, corrected=False), SHIPPED, every),
        ("no accumulator forwarding", programs(traces, forwarding), SHIPPED, every),
        ("128-bit results take one slot", programs(traces, narrow), SHIPPED, every),
        ("SADALP on a pipeline of its own", programs(traces, own_pipeline), SHIPPED, every),
        ("LD4, ST1 x 4 as in LLVM", programs(traces, functools.partial(structures, plain)), SHIPPED,
         every),
        ("divisions of zeros take longest", programs(traces, quick_divide=False), SHIPPED,
         every),
        ("no prefetcher", same, SHIPPED.but(ahead=0.0, stream_latency=25.0,
         stream_dram_latency=200.0), every),
        ("stores' misses overlap freely", same, SHIPPED.but(store_line=0.0), slow),
        ("write-backs are free", same, SHIPPED.but(write_share=0.0), every),
        ("no TLBs", same, SHIPPED.but(tlb=0.0, walk=0.0), every),
        ("no mispredicted branches", same, SHIPPED.but(mispredict=0.0), every),
        ("no bubble after taken branches", same, SHIPPED.but(taken=0.0), every),
    )  # fmt: skip
    head = f"{'without it, the mean error is':<36}{'in-sample %':>12}{'left out %':>12}"
    print(f"{head}{'worst %':>9}", flush=True)
    for name, made, start, fitted in table:
        work = functools.partial(model, made, 1)
        if fitted:
            found = fit(work, published, start, fitted, rounds=2)
            inside, outside = found.estimated, found.left_out
        else:
            inside = outside = tuple(work(start, range(len(made))))
        worst = max(abs(s / p - 1) for s, p in zip(outside, published, strict=True))
        line = f"{name:<36}{100 * mean_error(inside, published):>12.2f}"
        line += f"{100 * mean_error(outside, published):>12.2f}{100 * worst:>9.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
