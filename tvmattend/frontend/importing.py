# SPDX-License-Identifier: Apache-2.0
"""From a checked request to an `ImportedModel`; one function a source."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm.ir import IRModule

from tvmattend.errors import ModelError, WeightsError
from tvmattend.frontend import onnx_graph, torch_graph
from tvmattend.frontend.canonical import canonicalise
from tvmattend.frontend.extents import static_extent
from tvmattend.frontend.faults import first_line, in_memory, quiet
from tvmattend.frontend.imported import Arrays, ImportedModel, TensorSpec
from tvmattend.frontend.network import make_network
from tvmattend.frontend.onnx_folding import fold_constants
from tvmattend.frontend.onnx_reference import evaluator
from tvmattend.frontend.outputs import Declared, check_outputs, of_graph, of_program
from tvmattend.frontend.pt2 import load_archive
from tvmattend.frontend.request import ModelRequest
from tvmattend.frontend.weights import sha256
from tvmattend.preprocessing import Preprocessing, usual_resize

# That a bundle may say (runtime/manifest_fields.py); a wider output is no table of scores.
_MOST_CLASSES = 1 << 20


def import_checked(request: ModelRequest) -> ImportedModel:
    """Import what `request.check()` has let pass.

    Raises:
        ModelError: The network cannot be loaded or exported.
        UnsupportedOperatorError: The importer does not know one of its operators.
        WeightsError: The weights cannot be read or belong to another network.
    """
    sources = {
        "registry": _from_module,
        "factory": _from_module,
        "pt2": _from_archive,
        "onnx": _from_onnx,
    }
    return sources[request.source](request)


def _from_module(request: ModelRequest) -> ImportedModel:
    network, image = make_network(request)
    preprocessing, digest = None, None
    weights = f"as `{request.model}` makes them, torch seed {request.seed}"
    if request.source == "registry":
        preprocessing = Preprocessing(usual_resize(image[-1]), crop=image[-1])
        weights = f"seed {request.seed}"
    if request.weights is not None:
        weights, digest = f"`{request.weights.name}`", sha256(request.weights)
    _check_weights(dict(network.state_dict()), request.model)
    inputs = (_zeros((request.images, *image), torch.float32, request),)
    program = torch_graph.export(network, inputs, f"`{request.model}`")
    return _from_program(
        request,
        program,
        network.eval(),
        preprocessing=preprocessing,
        weights=weights,
        weights_sha256=digest,
        seed=request.seed if request.weights is None else None,
    )


def _from_archive(request: ModelRequest) -> ImportedModel:
    path = Path(request.model)
    program = load_archive(path)
    _check_weights(dict(program.state_dict), request.model)
    inputs = _static_inputs(program, request)
    network = program.module(check_guards=False)
    if inputs is not None:
        program = _specialise(network, inputs, request)
    return _from_program(
        request,
        program,
        network,
        preprocessing=None,
        weights=f"`{path.name}`",
        weights_sha256=sha256(path),
        seed=None,
    )


def _from_program(
    request: ModelRequest, program: ExportedProgram, network: nn.Module, **provenance: Any
) -> ImportedModel:
    module, paths = canonicalise(*torch_graph.to_relax(program))

    def run(inputs: Arrays) -> list["np.ndarray[Any, Any]"]:
        with torch.no_grad():
            result = network(*(torch.from_numpy(np.array(array)) for array in inputs))
        flat = torch.utils._pytree.tree_leaves(result)  # noqa: SLF001  (torch.export's own order)
        return [tensor.detach().numpy() for tensor in flat]  # a parameter may be returned

    names = list(program.graph_signature.user_outputs)
    reference = f"torch {torch.__version__}"
    declared = of_program(program)
    return _imported(request, module, paths, names, declared, run, reference, **provenance)


def _from_onnx(request: ModelRequest) -> ImportedModel:
    path = Path(request.model)
    model = onnx_graph.load_onnx(path)
    onnx_graph.fix_shapes(model, request)
    fold_constants(model)
    declared = of_graph(model)
    module, paths = canonicalise(onnx_graph.to_relax(model, declared), {})
    names = [value.name for value in model.graph.output]
    inputs = [value.name for value in onnx_graph.graph_inputs(model)]

    def run(arrays: Arrays) -> list["np.ndarray[Any, Any]"]:
        session = evaluator(model, onnx_graph.opset(model))
        return [
            np.asarray(out) for out in session.run(None, dict(zip(inputs, arrays, strict=True)))
        ]

    return _imported(
        request,
        module,
        paths,
        names,
        [declared.get(name) for name in names],
        run,
        f"onnx {onnx.__version__} reference",
        preprocessing=None,
        weights=f"`{path.name}`",
        weights_sha256=sha256(*onnx_graph.files(path)),
        seed=None,
    )


def _imported(
    request: ModelRequest,
    module: IRModule,
    paths: Mapping[str, str],
    names: Sequence[str],
    declared: Sequence[Declared | None],
    run: Callable[[Arrays], list["np.ndarray[Any, Any]"]],
    reference_name: str,
    **provenance: Any,
) -> ImportedModel:
    main = module["main"]
    returned = main.ret_ty
    fields = list(returned.fields) if hasattr(returned, "fields") else [returned]
    inputs = tuple(_spec(parameter.name, parameter.ty) for parameter in main.params)
    outputs = tuple(_spec(name, kind) for name, kind in zip(names, fields, strict=True))
    check_outputs(outputs, declared)
    scores = outputs[0].shape
    return ImportedModel(
        name=request.name,
        ir_module=module,
        inputs=inputs,
        outputs=outputs,
        classes=scores[1] if len(scores) == 2 and scores[1] <= _MOST_CLASSES else None,
        reference_name=reference_name,
        module_paths=paths,
        run_reference=run,
        **provenance,
    )


def _spec(name: str, kind: Any) -> TensorSpec:
    shape = tuple(int(extent) for extent in kind.shape)
    layout = {4: "NCHW", 2: "NC"}.get(len(shape), "")
    return TensorSpec(name, shape, str(kind.dtype.dtype), layout)


def _check_weights(state: Mapping[str, Any], name: str) -> None:
    for key, tensor in state.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(
                f"`{key}` of `{name}` is {str(tensor.dtype).removeprefix('torch.')}, not float32",
                "call .float() on the network before it is exported",
            )
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise WeightsError(
                f"`{key}` of `{name}` holds NaN, which is no number",
                "give weights from before the training diverged",
            )


def _static_inputs(
    program: ExportedProgram, request: ModelRequest
) -> tuple[torch.Tensor, ...] | None:
    """Make inputs of fixed shape for a program of symbolic shapes; None if its shapes are fixed.

    Raises:
        ModelError: A fixed extent that differs from what was asked, or one that nothing fixes.
    """
    symbolic = False
    inputs = []
    names = [
        s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT
    ]
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"input `{node.name}` of `{request.model}` is not a tensor", "export without it"
            )
        own = [extent if isinstance(extent, int) else str(extent) for extent in value.shape]
        symbolic = symbolic or any(isinstance(extent, str) for extent in own)
        extents = [
            static_extent(request, node.name, axis, value.ndim, extent)
            for axis, extent in enumerate(own)
        ]
        inputs.append(_zeros(extents, value.dtype, request))
    return tuple(inputs) if symbolic else None


def _zeros(extents: Sequence[int], dtype: torch.dtype, request: ModelRequest) -> torch.Tensor:
    """An input to trace with.

    Raises:
        ModelError: There is not that much memory.
    """
    shape = " x ".join(map(str, extents))
    with in_memory(f"an input of {shape} for `{request.model}`", "--batch or --input-size"):
        return torch.zeros(tuple(extents), dtype=dtype)


def _specialise(
    network: nn.Module, inputs: tuple[torch.Tensor, ...], request: ModelRequest
) -> ExportedProgram:
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(network, inputs)
    except Exception as error:  # torch.export documents no base class for what it raises
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise ModelError(
            f"`{request.model}` does not take {shapes}: {first_line(error)}",
            "give another --batch or --input-size",
        ) from error
