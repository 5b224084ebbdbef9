# SPDX-License-Identifier: Apache-2.0
"""`tvmattend run`: a bundle on one input, here or on a board, with the time it takes."""

import json
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmattend.cli.board_options import board_given, key_option, tracker_option
from tvmattend.cli.bundle_options import RUNS, rpc_option, signature_option, timeout_option
from tvmattend.cli.bundles import describe, open_bundle, place_of
from tvmattend.errors import BundleError, InputError, StorageError
from tvmattend.text import how_many

if TYPE_CHECKING:
    import numpy as np

    from tvmattend.runtime import Network, TensorSpec

_SEED = 0
_ELSEWHERE = "free some space there, or choose another --output"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "source",
    default="random",
    show_default=True,
    metavar="IMAGE|FILE.npy|FILE.npz|random",
    help="A photograph, an array, an array for each input by its name, or seeded noise.",
)
@rpc_option("Run on the board that serves there.")
@tracker_option
@key_option
@timeout_option
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(1), help="Classes to name."
)
@click.option("--repeat", default=10, show_default=True, type=RUNS, help="Timed runs.")
@click.option(
    "--warmup", default=2, show_default=True, type=click.IntRange(0, RUNS.max), help="Runs before."
)
@click.option(
    "--threads", type=click.IntRange(1), help="Threads. [default: what the bundle was built for]"
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the outputs: .npy or .npz.")
@signature_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    source: str,
    rpc: str | None,
    rpc_tracker: str | None,
    rpc_key: str | None,
    timeout: float,
    top: int,
    repeat: int,
    warmup: int,
    threads: int | None,
    output: Path | None,
    require_signature: Path | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on an input, here or on a board, and time it.

    Prints the likeliest classes, and the time of one inference: median, least and greatest of
    the timed runs, taken where the network runs.
    """
    _check_files(source, output)
    board = board_given(rpc, rpc_tracker, rpc_key)
    with open_bundle(bundle, board, threads, require_signature, timeout) as net:
        if output is not None and output.suffix == ".npy" and len(net.outputs) > 1:
            raise InputError(
                f"the network has {len(net.outputs)} outputs", "give --output FILE.npz"
            )
        arrays = read_inputs(net, source)
        outputs = _as_tuple(net(*arrays))
        seconds = net.time(*arrays, repeat=repeat, warmup=warmup)
        report = describe(net, bundle) | {
            "input": source,
            "top": _top(net, outputs, top),
            "seconds": {
                "median": statistics.median(seconds),
                "min": min(seconds),
                "max": max(seconds),
            },
            "repeat": repeat,
            "warmup": warmup,
            "outputs": [spec._asdict() for spec in net.outputs],
        }
    if output is not None:
        _write(output, net.outputs, outputs)
    _show(report, outputs, as_json)


def _check_files(source: str, output: Path | None) -> None:
    """Refuse what can be refused before a board is reached and a network runs on it."""
    if source != "random" and not Path(source).is_file():
        kind = f"{source} is a directory" if Path(source).is_dir() else f"there is no file {source}"
        raise InputError(kind, "give an image, a .npy, a .npz, or `random`")
    if output is not None and output.suffix not in {".npy", ".npz"}:
        raise InputError(f"--output {output} is neither .npy nor .npz", "name it with one of them")
    if output is not None and not output.absolute().parent.is_dir():
        raise StorageError(f"there is no directory {output.absolute().parent}", "make it first")
    if output is not None and not os.access(output.absolute().parent, os.W_OK | os.X_OK):
        raise StorageError(f"{output.absolute().parent} cannot be written to", _ELSEWHERE)


def read_inputs(net: "Network", source: str) -> list["np.ndarray[Any, Any]"]:
    """Make the network's inputs of what the user gave.

    Raises:
        InputError: The file is of another kind; shapes are the network's to check.
    """
    import numpy as np

    from tvmattend.runtime.network import NOT_NPZ

    if source == "random":
        random = np.random.default_rng(_SEED)
        return [_noise(random, spec) for spec in net.inputs]
    path = Path(source)
    if path.suffix not in {".npy", ".npz"}:
        return [net.preprocess(path)]
    try:
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            named = {} if isinstance(content, np.ndarray) else dict(content)
    except NOT_NPZ as error:
        raise InputError(
            f"{path} is not an array file: {error}", "save it with numpy.save"
        ) from error
    if isinstance(content, np.ndarray):
        return [content]
    missing = [spec.name for spec in net.inputs if spec.name not in named]
    if missing:
        raise InputError(f"{path} has no array `{missing[0]}`", f"it has: {', '.join(named)}")
    return [named[spec.name] for spec in net.inputs]


def _noise(random: "np.random.Generator", spec: "TensorSpec") -> "np.ndarray[Any, Any]":
    if spec.dtype.startswith("float"):
        return random.standard_normal(spec.shape).astype(spec.dtype)
    return random.integers(0, 2, spec.shape).astype(spec.dtype)


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _top(net: "Network", outputs: tuple[Any, ...], top: int) -> list[list[dict[str, Any]]] | None:
    """Name the likeliest classes of each image of the batch; None if there are none to name."""
    import numpy as np

    if net.manifest["classes"] is None:
        return None
    if not np.isfinite(outputs[0]).all():
        click.echo("note: the outputs hold infinities or NaN; no class is likeliest", err=True)
        return None
    if outputs[0].size % net.manifest["classes"]:
        raise BundleError(
            f"{net.manifest['model']}: its {outputs[0].size} scores are not a multiple of the "
            f"{net.manifest['classes']} classes that its manifest gives",
            "build the bundle again",
        )
    rows = outputs[0].reshape(-1, net.manifest["classes"])
    return [[prediction._asdict() for prediction in net.ranked(row, top)] for row in rows]


def _write(path: Path, specs: tuple["TensorSpec", ...], outputs: tuple[Any, ...]) -> None:
    """Write beside the place and rename, so that a full disk leaves what was there.

    Raises:
        StorageError: No space, no permission, or another fault of the file system.
    """
    import numpy as np

    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("wb") as stream:
            if path.suffix == ".npy":
                np.save(stream, outputs[0], allow_pickle=False)
            else:
                named = {spec.name: value for spec, value in zip(specs, outputs, strict=True)}
                np.savez(stream, allow_pickle=False, **named)
        staged.replace(path)
    except OSError as error:  # numpy's own, about fewer bytes written than asked, has no strerror
        raise StorageError(
            f"{path} could not be written: {error.strerror or error}", _ELSEWHERE
        ) from error
    finally:
        staged.unlink(missing_ok=True)


def _show(report: dict[str, Any], outputs: tuple[Any, ...], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report))
        return
    for number, predictions in enumerate(report["top"] or ()):
        if len(report["top"]) > 1:
            click.echo(f"image {number}")
        for prediction in predictions:
            label = prediction["label"] or f"class {prediction['class_index']}"
            click.echo(f"{prediction['probability']:8.2%}  {label}")
    if report["top"] is None:
        for spec, value in zip(report["outputs"], outputs, strict=True):
            click.echo(f"{spec['name']}: {value.dtype}{list(value.shape)}, mean {value.mean():.6g}")
    times = {name: f"{1e3 * value:.3f} ms" for name, value in report["seconds"].items()}
    threads = how_many(report["threads"], "thread")
    click.echo(
        f"median {times['median']}, min {times['min']}, max {times['max']} "
        f"({report['repeat']} runs, {threads}, {place_of(report)})"
    )
