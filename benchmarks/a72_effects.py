# SPDX-License-Identifier: Apache-2.0
"""What each effect of the Cortex-A72 model buys: the error without it, with the numbers refitted.

    python benchmarks/a72_validation.py --published DIR --threads 1 --traces TRACES
    python benchmarks/a72_effects.py --published DIR --traces TRACES

One thread, all networks of DIR; the traces are those that the first command kept. Refitted: one
Gauss-Newton step from the numbers that ship.
"""

import argparse
import functools
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from a72_validation import ONE_THREAD, model, read_published

from tvmattend.cli.main import errors_told
from tvmattend.errors import InputError
from tvmattend.machine.fitting import mean_error, refit, slope_of
from tvmattend.machine.instructions import Cost, costs_of
from tvmattend.machine.parameters import SHIPPED
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import Trace, read_trace

# Samples of a network: fewer than the validation's, as there are many fits.
_BYTES = 2_000_000
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


def kept(directory: Path, names: list[str]) -> list[Trace]:
    """Read the traces of one thread that `a72_validation.py --traces` kept.

    Raises:
        InputError: One is not there.
    """
    traces = []
    for name in names:
        path = directory / "1" / f"{name}.trace"
        if not path.is_file():
            raise InputError(
                f"there is no {path}",
                "make them: a72_validation.py --published DIR --threads 1 --traces DIR",
            )
        traces.append(read_trace(path).thinned(_BYTES))
    return traces


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True, metavar="DIR")
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR")
    given = parser.parse_args()
    with errors_told():
        show(given.published, given.traces)


def show(directory: Path, kept_in: Path) -> None:
    """Print the table."""
    networks = read_published(directory)
    traces = kept(kept_in, [network.name for network in networks])
    published = [network.published[1] for network in networks]
    words = {word for trace in traces for block in trace.blocks.values() for word in block.words}
    plain = {cost.text: cost for cost in costs_of(words, corrected=False).values()}
    same = programs(traces)
    as_llvm = programs(traces, functools.partial(structures, plain))
    no_misses = programs([without_misses(trace) for trace in traces])
    table = (
        ("everything", same, SHIPPED),
        ("no caches: every access hits L1", no_misses, SHIPPED),
        ("no corrections of LLVM's numbers", programs(traces, corrected=False), SHIPPED),
        ("no accumulator forwarding", programs(traces, forwarding), SHIPPED),
        ("128-bit results take one slot", programs(traces, narrow), SHIPPED),
        ("SADALP on a pipeline of its own", programs(traces, own_pipeline), SHIPPED),
        ("LD4, ST1 x 4 as in LLVM", as_llvm, SHIPPED),
        ("divisions of zeros take longest", programs(traces, quick_divide=False), SHIPPED),
        ("no prefetcher", same,
         SHIPPED.but(ahead=0.0, stream_latency=25.0, stream_dram_latency=200.0)),
        ("write-backs and fills are free", same, SHIPPED.but(write_share=0.0)),
        ("no mispredicted branches", same, SHIPPED.but(mispredict=0.0)),
    )  # fmt: skip
    work = functools.partial(model, same, 1)
    slope = slope_of(work, len(networks), SHIPPED, ONE_THREAD)
    plain_ones = [not network.name.endswith("_int8") for network in networks]
    print(f"{'without it, the mean error is':<36}{'all %':>8}{'fp32 %':>8}{'worst %':>9}"
          f"{'refitted: all %':>17}{'fp32 %':>8}{'worst %':>9}", flush=True)  # fmt: skip
    for name, made, start in table:
        work = functools.partial(model, made, 1)
        before = tuple(work(start, range(len(made))))
        _, after = refit(work, published, before, slope, start)
        line = f"{name:<36}"
        for times, width in ((before, 8), (after, 17)):
            ratios = [abs(s / p - 1) for s, p in zip(times, published, strict=True)]
            fp32 = [r for r, is_fp32 in zip(ratios, plain_ones, strict=True) if is_fp32]
            line += f"{100 * mean_error(times, published):>{width}.2f}"
            line += f"{100 * sum(fp32) / len(fp32):>8.2f}{100 * max(ratios):>9.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
