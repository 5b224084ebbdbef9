# SPDX-License-Identifier: Apache-2.0
"""How peers are set up, by their adapters here and by `peer_guest.py` on the emulated board.

fp32, all optimisations, as many threads as asked for. The guest imports this file from beside its
own and has no tvmattend, so nothing of it is imported here.
"""

from typing import Any


def ncnn_net(threads: int) -> Any:
    """Make an empty network with every 16-bit and 8-bit storage off, Winograd and packing on."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in dir(net.opt):
        if name.startswith(("use_fp16", "use_bf16", "use_int8")):
            setattr(net.opt, name, False)
    return net


def onnxruntime_session(path: str, threads: int, spinning: bool = True) -> Any:
    """Load a network with every graph optimisation, among them the NCHWc convolutions.

    Args:
        path: Of the `.onnx` file.
        threads: Of an inference.
        spinning: Whether threads that wait spin, as is ONNX Runtime's default. Under an emulator
            that takes the time of those that work, and what they execute would be counted.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
