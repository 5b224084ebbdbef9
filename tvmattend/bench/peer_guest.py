# SPDX-License-Identifier: Apache-2.0
"""Runs inside the emulated board: one inference of a runtime, marked for the machine model.

python peer_guest.py RUNTIME DIRECTORY THREADS

DIRECTORY holds what the runtime's adapter converted, and `input.npy`; `output.npy` goes there.
Runtimes are set up as on this machine, by `peer_settings.py` beside this file; threads of ONNX
Runtime that wait do not spin.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_MARKER = 0x0A720000


def _mark(phase: int) -> None:
    with suppress(OSError):  # no such file: the plugin has seen the call
        os.close(_MARKER + phase)


# Each gives a function that infers once, and one that gives the last output as an array.
_Made = tuple[Callable[[], Any], Callable[[], Any]]


def _ours(place: Path, threads: int, array: Any) -> _Made:
    sys.path.insert(0, str(place / "bundle"))
    import tvmattend_runtime  # type: ignore[import-not-found]

    net = tvmattend_runtime.load(str(place / "bundle"), threads)
    results: list[Any] = []
    return lambda: results.append(net(array)), lambda: results[-1]


def _ncnn(place: Path, threads: int, array: Any) -> _Made:
    import ncnn
    import numpy as np
    from peer_settings import ncnn_net  # type: ignore[import-not-found]

    net = ncnn_net(threads)
    failed = net.load_param(str(place / "model.ncnn.param"))
    if failed or net.load_model(str(place / "model.ncnn.bin")):
        sys.exit("ncnn cannot load the network")
    image = ncnn.Mat(array[0]).clone()
    results: list[Any] = []

    def infer() -> None:
        extractor = net.create_extractor()
        extractor.input("in0", image)
        results.append(extractor.extract(net.output_names()[0])[1])

    return infer, lambda: np.array(results[-1])


def _onnxruntime(place: Path, threads: int, array: Any) -> _Made:
    from peer_settings import onnxruntime_session

    session = onnxruntime_session(str(place / "model.onnx"), threads, spinning=False)
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, array)
    for value in session.get_outputs():
        binding.bind_output(value.name)
    return (
        lambda: session.run_with_iobinding(binding),
        lambda: binding.copy_outputs_to_cpu()[0],
    )


def _litert(place: Path, threads: int, array: Any) -> _Made:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(place / "model.tflite"), num_threads=threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], array)
    output = interpreter.get_output_details()[0]["index"]
    return interpreter.invoke, lambda: interpreter.get_tensor(output)


_RUNTIMES = {
    "tvmattend": _ours,
    "ncnn": _ncnn,
    "onnxruntime": _onnxruntime,
    "litert": _litert,
}


def _main() -> None:
    runtime, place, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    # The board has four cores, however many this machine has.
    os.sched_getaffinity = lambda _: set(range(4))
    sys.dont_write_bytecode = True
    import numpy as np

    infer, output = _RUNTIMES[runtime](place, threads, np.load(place / "input.npy"))
    infer()  # allocates, and packs weights where that was put off
    _mark(1)
    infer()
    _mark(2)
    infer()
    _mark(3)
    np.save(place / "output.npy", output())
    # Some runtimes crash when Python takes them down.
    sys.stdout.flush()
    os._exit(0)


_main()
