# SPDX-License-Identifier: Apache-2.0
"""Kernels to tune that need no network: a matmul, and some that fail in their own way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import tvm
from tvm import te, tirx

from schedules.space import DesignSpace, Knob
from tvmattend.tuning.bench import Artifact, BoardLostError, Candidate, Outcome
from tvmattend.tuning.tasks import Task, workload_key

FLAG = (Knob("flag", (0, 1), 0),)


def _as_it_is(sch, choose):
    choose("flag")


def task(name, func, schedule=_as_it_is, knobs=FLAG, weight=1):
    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    return Task(name, workload_key(mod), mod, DesignSpace(name, knobs, schedule), weight, 16.0)


def matmul(size=64, weight=1, name="matmul"):
    """16 points: rows in a tile x columns in a vector."""
    left, right = te.placeholder((size, size), name="a"), te.placeholder((size, size), name="b")
    k = te.reduce_axis((0, size), name="k")
    product = te.compute(
        (size, size), lambda i, j: te.sum(left[i, k] * right[k, j], axis=k), name="c"
    )

    def schedule(sch, choose):
        i, j, k = sch.get_loops(sch.get_sblock("c"))
        i_out, i_in = sch.split(i, [None, choose("rows")])
        j_out, j_in = sch.split(j, [None, choose("cols")])
        sch.reorder(i_out, j_out, k, i_in, j_in)
        sch.vectorize(j_in)

    knobs = (Knob("rows", (1, 2, 4, 8), 2), Knob("cols", (4, 8, 16, 32), 8))
    func = te.create_prim_func([left, right, product])
    made = task(name, func, schedule, knobs, weight)
    return Task(name, made.key, made.mod, made.space, weight, 2.0 * size**3)


def _element_wise(function):
    source = te.placeholder((16,), name="a")
    return te.create_prim_func([source, te.compute((16,), lambda i: function(source, i), name="c")])


def add_one():
    return task("add_one", _element_wise(lambda a, i: a[i] + 1.0))


def crashing():
    far = tirx.const(1 << 44, "int64")
    return task("crashing", _element_wise(lambda a, i: a[i.astype("int64") + far]))


def unloadable():
    def call(a, i):
        return tirx.call_pure_extern("float32", "no_such_function_anywhere", a[i])

    return task("unloadable", _element_wise(call))


def unbuildable():
    def schedule(sch, choose):
        choose("flag")
        sch.annotate(sch.get_loops(sch.get_sblock("c"))[0], "pragma_import_llvm", "not llvm")

    return task("unbuildable", _element_wise(lambda a, i: a[i] + 2.0), schedule)


def unschedulable(bad=(0, 1)):
    def schedule(sch, choose):
        if choose("flag") in bad:
            sch.get_sblock("no such block")

    return task("unschedulable", _element_wise(lambda a, i: a[i] + 3.0), schedule)


def hanging():
    million = 1_000_000
    k1, k2 = te.reduce_axis((0, million), "k1"), te.reduce_axis((0, million), "k2")
    source = te.placeholder((16,), name="a")
    total = te.compute((16,), lambda i: te.sum(source[(i + k1 + k2) % 16], axis=[k1, k2]), name="c")
    return task("hanging", te.create_prim_func([source, total]))


def scheduled(of: Task, point: Mapping[str, int] | None = None) -> Candidate:
    schedule = tvm.s_tir.Schedule(of.mod)
    point = point or of.space.default
    of.space.apply(schedule, point)
    return Candidate(of, point, schedule)


def seconds_of(task: Task, point: Mapping[str, int]) -> float:
    """A landscape with one valley, away from every default."""
    return 1e-4 * (1 + sum((value % 7) for value in point.values())) * task.weight


@dataclass
class FakeMeasurer:
    """Answers from a function; no process is started.

    Attributes:
        answer: Called with the task and the point; gives an outcome or raises.
        back: What `answers` gives, call by call; afterwards True.
        ran: Task name and point of every run, in order.
    """

    answer: Callable[[Task, Mapping[str, int]], Outcome] = lambda task, point: Outcome(
        "ok", (seconds_of(task, point),)
    )
    back: list[bool] = field(default_factory=list)
    ran: list[tuple[str, tuple[tuple[str, int], ...]]] = field(default_factory=list)
    origin: str = "measured"
    machine: Mapping[str, object] = field(default_factory=lambda: {"core": "fake"})
    discarded: int = 0

    def build(self, candidates):
        return [
            Outcome("build-error", error=f"schedule: {item.error}")
            if item.schedule is None
            else Artifact("unused", item)
            for item in candidates
        ]

    def run(self, artifact, hot_too=False):
        del hot_too
        item = artifact.args_info
        self.ran.append((item.task.name, tuple(sorted(item.point.items()))))
        return self.answer(item.task, item.point)

    def discard(self, artifact):
        assert artifact.path == "unused"
        self.discarded += 1

    def answers(self, seconds):
        del seconds
        return self.back.pop(0) if self.back else True

    def close(self):
        pass


def lost(reason="connection refused", during_kernel=True, sent=True):
    return BoardLostError(reason, during_kernel, sent=sent)


class FakeRanker:
    """Knows nothing, or prefers what `score` says; remembers what it was taught."""

    def __init__(self, score=None):
        self.score = score
        self.lessons = []

    def learn(self, task, trials):
        self.lessons += [(task.name, run_secs) for _, run_secs in trials]

    def rank(self, task, schedules):
        assert isinstance(task, Task)
        return None if self.score is None else [self.score(schedule) for schedule in schedules]
