# SPDX-License-Identifier: Apache-2.0
"""How near the Cortex-A72 estimate comes to what ncnn's maintainers measured on a Raspberry Pi 4.

    python benchmarks/a72_validation.py --published DIR [--fit] [--json]

DIR holds `published.csv` (network, input_whc, one_thread_ms, four_threads_ms) and a `.param` file
a network. ncnn's aarch64 wheel runs each network once under QEMU with the machine model's plugin.
Without `--fit` the parameters that ship are used; with it they are fitted on these networks, and
each network is also estimated from a fit without it.
"""

import argparse
import csv
import functools
import json
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tvmattend.cache import prepared
from tvmattend.cli.main import errors_told
from tvmattend.device.emulated import prepare
from tvmattend.device.wheels import install_wheels
from tvmattend.errors import InputError
from tvmattend.machine.estimate import seconds
from tvmattend.machine.fitting import Fit, fit, kendall, mean_error, spearman
from tvmattend.machine.parameters import FITTED, SHIPPED, Parameters
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import Trace, read_trace
from tvmattend.machine.tracing import Settings, trace

# The nearest in time to the published figures (2023-06-15); seven commits lie between.
WHEEL = "ncnn==1.0.20230816"
_GUEST = Path(__file__).with_name("ncnn_guest.py")
# Samples of a network and a thread that a fit replays: some five million instructions. With a
# fifth of that the noise of the samples is as large as the errors that are fitted.
_FIT_BYTES = 3_000_000
ONE_THREAD = ("l2_latency", "l2_line", "dram_latency_ns", "dram_bytes_per_ns")
_COLUMNS = {1: "one_thread_ms", 4: "four_threads_ms"}
_FOUR_THREADS = ("dram_shared_bytes_per_ns", "fork_ns")


@dataclass(frozen=True)
class Network:
    """One row of `published.csv`; times in seconds, by threads."""

    name: str
    shape: tuple[int, int, int]
    published: dict[int, float]


def read_published(directory: Path) -> list[Network]:
    """Read `published.csv`, and see that each network's `.param` file is there.

    A time may be left out; the network then takes no part in that number of threads.

    Raises:
        InputError: Something is missing or cannot be understood.
    """
    table = directory / "published.csv"
    if not table.is_file():
        raise InputError(f"there is no {table}", "--published is the folder with published.csv")
    networks = []
    with table.open(encoding="utf-8", newline="") as rows:
        for number, row in enumerate(csv.DictReader(rows), 2):
            try:
                width, height, channels = (int(size) for size in row["input_whc"].split("x"))
                published = {
                    threads: _seconds(row[column])
                    for threads, column in _COLUMNS.items()
                    if (row.get(column) or "").strip()
                }
                network = Network(row["network"], (width, height, channels), published)
            except (KeyError, ValueError, AttributeError, TypeError) as error:
                raise InputError(
                    f"line {number} of {table} cannot be understood: {error!r}",
                    "columns: network, input_whc (224x224x3), one_thread_ms, four_threads_ms",
                ) from error
            param = directory / f"{network.name}.param"
            if not param.is_file():
                raise InputError(f"there is no {param}", f"{table.name} names it in line {number}")
            networks.append(network)
    if not networks:
        raise InputError(f"{table} names no network", "one a line, below the line of the columns")
    return networks


def _seconds(milliseconds: str) -> float:
    found = float(milliseconds) / 1e3
    if not 0 < found < math.inf:
        raise ValueError(f"a time is above zero, not {milliseconds}")
    return found


def chosen(networks: list[Network], names: str | None) -> list[Network]:
    """Those of `--networks`."""
    if names is None:
        return networks
    known = {network.name: network for network in networks}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise InputError(f"published.csv has no {unknown[0]}", f"it has {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def traced(
    networks: list[Network], threads: int, directory: Path, kept: Path | None
) -> list[Program]:
    """Trace each network, or read what `--traces` kept of an earlier run."""
    programs = []
    for network in networks:
        place = kept / str(threads) / f"{network.name}.trace" if kept else None
        if place is None or not place.is_file():
            say(f"{network.name}, {threads} thread{'s' if threads > 1 else ''}")
            run = _run(network, threads, directory, place)
        else:
            run = read_trace(place)
        # Weights are zero, so what is divided (swish, sigmoid) is zero or a power of two.
        programs.append(Program(run, quick_divide=True))
    return programs


def _run(network: Network, threads: int, directory: Path, keep: Path | None) -> Trace:
    board = prepare(say)
    python = board.minimal_python()
    version = board.python_version
    wheel = prepared("ncnn", {"wheel": WHEEL, "python": version},
                     functools.partial(_unpack, version), say)  # fmt: skip
    guest = python.guest_command(
        [str(_GUEST), str(directory / f"{network.name}.param"), *map(str, network.shape),
         str(threads)]
    )  # fmt: skip
    environment = python.environment({"OMP_WAIT_POLICY": "passive"})
    environment["PYTHONPATH"] += os.pathsep + str(wheel)
    return trace(guest, Settings(sysroot=python.root, keep=keep), environment, say)[0]


def _unpack(version: str, place: Path) -> None:
    install_wheels([WHEEL], place, "aarch64", version)


def model(
    programs: list[Program], threads: int, parameters: Parameters, places: Sequence[int]
) -> list[float]:
    """Give the seconds of the networks at these places."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        work = functools.partial(seconds, parameters=parameters, threads=threads)
        return list(pool.map(work, [programs[place] for place in places]))


def report(networks: list[Network], threads: int, found: Fit, fitted: bool) -> dict[str, object]:
    """Put the figures of one thread count together; nan for what needs more networks."""
    published = [network.published[threads] for network in networks]
    plain = [not network.name.endswith("_int8") for network in networks]

    def error(times: tuple[float, ...], only: list[bool]) -> float:
        taken = [i for i, take in enumerate(only) if take]
        if not taken:
            return math.nan
        return 100 * mean_error([times[i] for i in taken], [published[i] for i in taken])

    judged = found.left_out if fitted else found.estimated
    rows = {
        network.name: {
            "published_ms": 1e3 * published[i],
            "estimated_ms": 1e3 * found.estimated[i],
            "error_percent": 100 * (found.estimated[i] / published[i] - 1),
            **({"left_out_ms": 1e3 * found.left_out[i],
                "left_out_error_percent": 100 * (found.left_out[i] / published[i] - 1)}
               if fitted else {}),
        }
        for i, network in enumerate(networks)
    }  # fmt: skip
    every = [True] * len(networks)
    plain_judged, plain_published = (
        [time for time, take in zip(times, plain, strict=True) if take]
        for times in (judged, published)
    )
    return {
        "threads": threads,
        "networks": rows,
        "mape": error(judged, every),
        "mape_fp32": error(judged, plain),
        "mape_in_sample": error(found.estimated, every),
        "mape_fp32_in_sample": error(found.estimated, plain),
        "worst": 100 * max(abs(s / p - 1) for s, p in zip(judged, published, strict=True)),
        "spearman": spearman(judged, published) if len(networks) > 1 else math.nan,
        "spearman_fp32": spearman(plain_judged, plain_published) if sum(plain) > 1 else math.nan,
        "kendall": kendall(judged, published),
        "sum_ratio": sum(judged) / sum(published),
    }


def show(result: dict[str, object], fitted: bool) -> None:
    """Print a table."""
    print(f"\n{result['threads']} thread(s)")
    head = f"{'network':<18}{'published ms':>13}{'estimated ms':>13}{'error %':>9}"
    print(head + (f"{'left out ms':>13}{'error %':>9}" if fitted else ""))
    for name, row in result["networks"].items():
        line = f"{name:<18}{row['published_ms']:>13.2f}{row['estimated_ms']:>13.2f}"
        line += f"{row['error_percent']:>9.1f}"
        if fitted:
            line += f"{row['left_out_ms']:>13.2f}{row['left_out_error_percent']:>9.1f}"
        print(line)
    kind = "leave-one-out" if fitted else "shipped parameters"
    line = f"MAPE {result['mape']:.2f} % (fp32 {result['mape_fp32']:.2f} %), {kind}"
    if fitted:
        line += f"; in-sample {result['mape_in_sample']:.2f} % (fp32 "
        line += f"{result['mape_fp32_in_sample']:.2f} %)"
    print(line)
    print(f"worst {result['worst']:.1f} %, Spearman {result['spearman']:.4f} (fp32 "
          f"{result['spearman_fp32']:.4f}), Kendall {result['kendall']:.4f}; all times together "
          f"{result['sum_ratio']:.3f} of those published")  # fmt: skip


def judge(
    networks: list[Network],
    programs: list[Program],
    threads: int,
    start: Parameters,
    rounds: int | None,
) -> Fit:
    """Fit in so many rounds, or estimate with the parameters given."""
    published = [network.published[threads] for network in networks]
    work = functools.partial(model, programs, threads)
    if rounds is None:
        found = tuple(work(start, range(len(programs))))
        return Fit(start, found, found)
    thin = [Program(p.trace.thinned(threads * _FIT_BYTES), quick_divide=True) for p in programs]
    work = functools.partial(model, thin, threads)
    names = ONE_THREAD if threads == 1 else _FOUR_THREADS
    return fit(work, published, start, names, rounds, say)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, choices=(1, 4), action="append")
    parser.add_argument("--networks", help="only these, separated by commas")
    parser.add_argument(
        "--traces", type=Path, metavar="DIR", help="keep traces there, and use them"
    )
    parser.add_argument("--fit", action="store_true", help="fit the parameters on these networks")
    parser.add_argument(
        "--rounds", type=int, default=5, help="of the fit; 0 only leaves each network out in turn"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with errors_told():
        every = chosen(read_published(given.published), given.networks)
        parameters, results = SHIPPED, []
        for threads in given.threads or (1, 4):
            networks = [network for network in every if threads in network.published]
            if not networks:
                say(f"nothing was published for {threads} thread(s)")
                continue
            programs = traced(networks, threads, given.published, given.traces)
            rounds = given.rounds if given.fit else None
            found = judge(networks, programs, threads, parameters, rounds)
            parameters = found.parameters
            results.append(report(networks, threads, found, given.fit))
        if not results:
            raise InputError(
                "nothing to compare with", "published.csv has times for 1 or 4 threads"
            )
    numbers = {name: getattr(parameters, name) for name in FITTED}
    if given.json:
        first = results[0]
        summary = {key: first[key] for key in ("mape", "mape_fp32", "spearman", "kendall")}
        data = {**summary, "runs": results, "parameters": numbers}
        print(json.dumps(data).replace("NaN", "null"))
        return
    for result in results:
        show(result, given.fit)
    print("\nparameters " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
