# SPDX-License-Identifier: Apache-2.0
"""Scheduled PrimFuncs -> C functions over plain pointers, a part of the work at a time.

TVM's own calling convention packs arguments into tagged unions, checks them on every call, asks
the runtime for scratch memory and hands loops to the runtime's thread pool. None of that is needed
where shapes and threads are known:

    for i in T.parallel(n): body       ->   void kernel(x, w, y, scratch, first, last)
                                            { for (i = first; i < last; ++i) body }

Scratch that the body allocates becomes a pointer that the caller provides; registers stay on the
stack, where LLVM promotes them. A kernel of several top-level loops becomes several phases, with a
barrier between them where one reads what another wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from schedules.machines import Machine, machine_of
from tvmattend.errors import CompileError
from tvmattend.standalone.prefetch import prefetch, prefetch_weights
from tvmattend.standalone.statements import (
    flatten,
    hoist,
    on_stack,
    parallel,
    size_of,
    stored,
    uses,
    walk,
)
from tvmattend.target import TargetSpec

ALIGNMENT = 64
# Of the stack, when C calls a function.
_STACK_ALIGNMENT = 16
_FLOAT_BYTES = 4

Role = Literal["argument", "shared", "private"]


@dataclass(frozen=True)
class Signature:
    """What a kernel's parameters are to the network.

    Attributes:
        results: How many of the last ones it writes.
        weights: Those that are weights in every call.
    """

    results: int
    weights: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Param:
    """A pointer parameter: an argument of the kernel or scratch, by its place among its kind."""

    role: Role
    index: int


@dataclass(frozen=True)
class Phase:
    """One C function.

    Attributes:
        symbol: Its name in C.
        params: Its pointers, in order.
        parts: Iterations that threads share (`first`, `last` follow the pointers), or 0 if one
            thread runs all of it and there are no such parameters.
        private: Bytes of each scratch buffer that every thread has for itself.
        writes: Those of `params` that it writes.
        func: Its TIR.
    """

    symbol: str
    params: tuple[Param, ...]
    parts: int
    private: tuple[int, ...]
    writes: frozenset[Param]
    func: Any


@dataclass(frozen=True)
class Kernel:
    """The phases of a PrimFunc, and the bytes of each scratch buffer that they share."""

    name: str
    phases: tuple[Phase, ...]
    shared: tuple[int, ...]


def split_kernels(
    scheduled: Any, signatures: Mapping[str, Signature], prefix: str, target: TargetSpec
) -> dict[str, Kernel]:
    """Lower and split the kernels of a network.

    Args:
        scheduled: IRModule with one scheduled PrimFunc a kernel.
        signatures: Of the kernels to take.
        prefix: Of all C names.
        target: The machine.

    Raises:
        CompileError: A kernel has no such form; the message names it and why.
    """
    import tvm

    functions = {
        gvar: func for gvar, func in scheduled.functions_items() if gvar.name_hint in signatures
    }
    weights = {name: signature.weights for name, signature in signatures.items()}
    core = machine_of(target.to_tvm())
    lowered = _lower(tvm.IRModule(functions), weights, target, core)
    return {
        gvar.name_hint: _Splitter(
            gvar.name_hint, func, signatures[gvar.name_hint].results, prefix, core.lanes
        ).split()
        for gvar, func in lowered.functions_items()
    }


def generate(kernels: Sequence[Kernel], target: TargetSpec) -> Any:
    """Compile the phases.

    Returns:
        A TVM runtime module; `write_to_file(path, "o")` gives the object.
    """
    import tvm
    from tvm import s_tir, tirx

    machine = target.to_tvm()
    functions = {
        phase.symbol: phase.func.with_attr("target", machine)
        for kernel in kernels
        for phase in kernel.phases
    }
    # The phases of a kernel were made from the same statements: give each its own variables.
    mod = s_tir.transform.ConvertSSA()(tvm.IRModule(functions))
    mod = tirx.transform.LowerIntrin()(mod)
    return tvm.get_global_func("target.build.llvm")(mod, machine)


def _lower(
    mod: Any, weights: Mapping[str, frozenset[int]], target: TargetSpec, core: Machine
) -> Any:
    """Run the CPU's share of TVM's TIR pipeline, up to where it would pack the arguments."""
    import tvm
    from tvm import s_tir, tirx

    machine = target.to_tvm()
    stir, tir = s_tir.transform, tirx.transform
    # The order is that of `tvm.s_tir.pipeline.default_s_tir_pipeline`, without what concerns GPUs:
    # the same statements come out as in a build for the VM, but for prefetches, hence the same
    # results.
    loops = [
        tir.BindTarget(machine.with_host(machine)),
        stir.CanonicalizeLoop(),
        stir.LowerInitBlock(),
        stir.PlanAndUpdateBufferAllocationLocation(),
        stir.ConvertBlocksToOpaque(),
        stir.CompactBufferAllocation(),
        stir.LowerMatchBuffer(),
        stir.StmtSimplify(),
        stir.AnnotateIrregularLoop(),
        stir.InjectSoftwarePipeline(),
        stir.LowerOpaqueBlock(),
        tir.FlattenBuffer(),
        tir.BF16ComputeLegalize(),
        tir.NarrowDataType(32),
        stir.LoopPartition(),
        tir.VectorizeLoop(enable_vectorize=True),
        stir.InjectDoubleBuffer(),
        tir.StorageRewrite(),
        stir.HoistIfThenElse(),
        tir.UnrollLoop(),
        stir.RenormalizeSplitPattern(),
        tir.StmtSimplify(),
        tir.RemoveNoOp(),
        stir.RewriteUnsafeSelect(),
    ]
    names = [tir.CommonSubexprElim(), tir.VerifyMemory()]
    lowered = tvm.ir.transform.Sequential(loops)(mod)
    hinted = {
        gvar: prefetch_weights(func, weights[gvar.name_hint], core)
        for gvar, func in lowered.functions_items()
    }
    return tvm.ir.transform.Sequential(names)(tvm.IRModule(hinted))


class _Splitter:
    """Cuts one PrimFunc into phases."""

    def __init__(self, name: str, func: Any, results: int, prefix: str, lanes: int) -> None:
        self._name = name
        self._lanes = lanes
        self._params = list(func.params)
        self._results = set(self._params[len(self._params) - results :])
        self._prefix = prefix
        self._statements = flatten(func.body)
        self._definitions: dict[Any, Any] = {}  # variable -> the Bind or DeclBuffer that makes it
        self._allocated: dict[Any, Any] = {}  # buffer allocated at the top -> its AllocBuffer

    def split(self) -> Kernel:
        groups = self._group()
        for group in groups:
            self._refuse_nested_parallel(group)
        needed = [self._closure(group) for group in groups]
        shared = [
            buffer
            for buffer in self._allocated
            if sum(buffer in use for _, use in needed) > 1
            or any(
                buffer in use and parallel(g) for g, (_, use) in zip(groups, needed, strict=True)
            )
        ]
        phases = []
        for place, (group, (definitions, _)) in enumerate(zip(groups, needed, strict=True)):
            suffix = f"_{place}" if len(groups) > 1 else ""
            symbol = f"{self._prefix}_kernel_{self._name}{suffix}"
            phases.append(self._phase(symbol, group, definitions, shared))
        return Kernel(self._name, tuple(phases), tuple(size_of(buffer) for buffer in shared))

    def _group(self) -> list[list[Any]]:
        """Parallel loops alone, serial statements together; definitions are set aside."""
        from tvm.tirx import AllocBuffer, Bind, DeclBuffer

        groups: list[list[Any]] = []
        for statement in self._statements:
            if isinstance(statement, AllocBuffer):
                self._allocated[statement.buffer] = statement
            elif isinstance(statement, DeclBuffer):
                self._definitions[statement.buffer] = statement
            elif isinstance(statement, Bind):
                self._definitions[statement.var] = statement
            elif groups and not parallel([statement]) and not parallel(groups[-1]):
                groups[-1].append(statement)
            else:
                groups.append([statement])
        return groups

    def _closure(self, group: list[Any]) -> tuple[list[Any], set[Any]]:
        """The definitions that a group needs, in order, and the buffers under them."""
        from tvm.tirx import Bind

        wanted = set().union(*map(uses, group))
        found: list[Any] = []
        for variable, statement in reversed(self._definitions.items()):
            if variable in wanted:
                found.append(statement)
                source = statement.value if isinstance(statement, Bind) else statement.data
                sources = uses(source)
                if isinstance(statement, Bind) and any(hasattr(use, "shape") for use in sources):
                    raise CompileError(
                        f"the kernel `{self._name}` reads memory into `{variable.name}` outside "
                        "of its loops",
                        "`--format vm` compiles it",
                    )
                wanted = (wanted - {variable}) | sources
        unknown = wanted - set(self._params) - set(self._allocated)
        if unknown:
            names = ", ".join(sorted(variable.name for variable in unknown))
            raise CompileError(f"the kernel `{self._name}` uses {names}, which nothing defines")
        return found[::-1], wanted

    def _phase(
        self, symbol: str, group: list[Any], definitions: list[Any], shared: list[Any]
    ) -> Phase:
        from tvm import tirx

        private: list[Any] = []
        body, parts, bounds = list(group), 0, []
        used = self._closure(group)[1]
        if parallel(group):
            (loop,) = group
            parts = self._extent(loop)
            first, last = tirx.Var("first", "int32"), tirx.Var("last", "int32")
            bounds = [first, last]
            inner = hoist(loop.body, private)
            kind = str(loop.loop_var.ty)  # of a kernel whose indices TVM does not narrow: int64
            begin, count = first.astype(kind), (last - first).astype(kind)
            body = [tirx.For(loop.loop_var, begin, count, tirx.ForKind.SERIAL, inner)]
        else:
            body = [hoist(statement, private) for statement in body]
            for buffer in (b for b in self._allocated if b in used and b not in shared):
                if on_stack(buffer):
                    definitions = [self._allocated[buffer], *definitions]
                else:
                    private.append(buffer)
        buffers = [(Param("argument", i), b) for i, b in enumerate(self._params) if b in used]
        buffers += [(Param("shared", i), b) for i, b in enumerate(shared) if b in used]
        buffers += [(Param("private", i), b) for i, b in enumerate(private)]
        written = stored([*definitions, *body])
        self._check_writes(written)
        func = _function(
            symbol, [b for _, b in buffers], bounds, [*definitions, *body], self._lanes
        )
        return Phase(
            symbol,
            tuple(param for param, _ in buffers),
            parts,
            tuple(size_of(buffer) for buffer in private),
            frozenset(param for param, buffer in buffers if buffer in written),
            func,
        )

    def _check_writes(self, written: set[Any]) -> None:
        for buffer in self._params:
            if buffer in written and buffer not in self._results:
                raise CompileError(
                    f"the kernel `{self._name}` writes its argument `{buffer.name}`",
                    "`--format vm` compiles it",
                )

    def _extent(self, loop: Any) -> int:
        from tvm.tirx import IntImm

        if not isinstance(loop.extent, IntImm) or int(loop.min) != 0:
            raise CompileError(f"the kernel `{self._name}` has a parallel loop of dynamic extent")
        return int(loop.extent)

    def _refuse_nested_parallel(self, group: list[Any]) -> None:
        inner = [group[0].body] if parallel(group) else group
        if any(parallel([node]) for statement in inner for node in walk(statement)):
            raise CompileError(
                f"the kernel `{self._name}` has a parallel loop inside of another statement",
                "`--format vm` compiles it",
            )


def _function(
    symbol: str, buffers: list[Any], bounds: list[Any], body: list[Any], lanes: int
) -> Any:
    """A PrimFunc over raw pointers, each of which LLVM may take to be aligned and unaliased."""
    from tvm import tirx

    if lanes * _FLOAT_BYTES > _STACK_ALIGNMENT:
        body = [*_align_stack(lanes), *body]

    pointers = [
        tirx.Var(f"{buffer.name}_at", tirx.buffer_data_pointer_type(buffer)) for buffer in buffers
    ]
    whole: Any = tirx.SeqStmt(body) if len(body) > 1 else body[0]
    for pointer, buffer in reversed(list(zip(pointers, buffers, strict=True))):
        aligned = tirx.AttrStmt(buffer, "storage_alignment", tirx.IntImm("int32", ALIGNMENT), whole)
        whole = tirx.SeqStmt([tirx.DeclBuffer(buffer, data=pointer), aligned])
    func = tirx.PrimFunc([*pointers, *bounds], whole)
    return func.with_attr("global_symbol", symbol).with_attr("tirx.noalias", True)


def _align_stack(lanes: int) -> list[Any]:
    """Statements that make LLVM align the stack to vectors of so many fp32 lanes.

    It keeps vectors there when registers run out, at whatever address comes of the caller's 16
    bytes: some processes were 7 to 25 % slower in a kernel than others. It aligns the stack where a
    variable asks for it that cannot be in a register, such as one of which an address is taken.
    """
    from tvm import tirx

    anchor = tirx.decl_buffer((1,), f"float32x{lanes}", name="anchor")
    return [tirx.AllocBuffer(anchor), prefetch(tirx.BufferLoad(anchor, [0]))]
