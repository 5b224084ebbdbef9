# SPDX-License-Identifier: Apache-2.0
"""A bundle in this process, for a profile.

TVM's virtual machine calls an instrument before and after every call that it makes, which costs
about one microsecond. A standalone library has none; it times its own steps, with the clock of the
thread that calls it.
"""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmattend.bench.host import Load, describe_machine, machine_line
from tvmattend.bench.profiled import Call, Inference, Observer, Seen
from tvmattend.errors import BenchmarkError
from tvmattend.runtime.executors import kernel_thread, size_pool

if TYPE_CHECKING:
    import numpy as np
    import tvm

    from tvmattend.runtime import Network
    from tvmattend.target import TargetSpec

_BUILTIN = "vm.builtin."
_AGAIN = 5
_REPEATS = 40


class ProfiledHere:
    """A network of this process; see `Profiled`."""

    notes: tuple[str, ...] = ()

    def __init__(self, network: "Network") -> None:
        self.threads = network.threads
        self.machine = describe_machine()
        self.machine_text = machine_line(self.machine)
        self._network = network
        self._load = Load(sorted(os.sched_getaffinity(0)), [os.getpid()])

    def look(self, runs: int, observer: Observer) -> Seen:
        """Time so many inferences, and on the spot fewer."""
        inputs = self._network.golden()[0][0]
        self._network.time(*inputs, repeat=runs, warmup=2)  # the clock and the caches
        observer("timing kernels in the inference")
        if self._network.manifest["format"] != "vm":
            inside, whole = self._by_its_own_clock(inputs, runs)
            return Seen(inside, inside, whole)
        inside, whole = self._instrumented(inputs, runs, again=False)
        observer("timing kernels again on the spot")
        spot, _ = self._instrumented(inputs, max(3, runs // 10), again=True)
        return Seen(inside, spot, whole)

    def least_seconds(
        self, module: "tvm.IRModule", arrays: "Sequence[np.ndarray[Any, Any]]", target: "TargetSpec"
    ) -> float:
        """Compile a module, and give the least seconds of a call of its `main`."""
        import tvm
        import tvm_ffi

        main = tvm.compile(module, target=target.to_tvm())["main"]
        tensors = [tvm.runtime.tensor(array) for array in arrays]

        def least() -> float:
            # A standalone library has threads of its own, and TVM's pool its default size.
            size_pool(tvm_ffi, self.threads, os.sched_getaffinity(0))
            return min(_seconds(main, tensors) for _ in range(_REPEATS))

        return kernel_thread(self.threads).submit(least).result()

    def others(self) -> float | None:
        """Share of the cores' time that went to other processes so far; None if unknown."""
        return self._load.others()

    def _instrumented(
        self, inputs: "Sequence[np.ndarray[Any, Any]]", runs: int, *, again: bool
    ) -> tuple[list[Inference], list[float]]:
        """Run with and without an instrument in turns; it is removed in the end.

        Returns:
            What the instruments saw, and the seconds of the whole inferences without.
        """
        self._network(*inputs)  # puts the inputs in place
        # The network's executor owns the virtual machine and the thread with TVM's pool; there is
        # no public way to either, and only a profiler wants one.
        executor = self._network._executor  # noqa: SLF001
        set_instrument, main = executor._vm["set_instrument"], executor._main  # noqa: SLF001
        tensors = executor._tensors  # noqa: SLF001

        def work() -> tuple[list[_Instrument], list[float]]:
            seen, whole = [], []
            try:
                for _ in range(runs + 1):
                    seen.append(_Instrument(again))
                    set_instrument(seen[-1])
                    main(*tensors)
                    set_instrument(None)
                    main(*tensors)  # the instrument's Python has been in the caches
                    whole.append(_seconds(main, tensors))
            finally:
                set_instrument(None)
            return seen[1:], whole[1:]  # the first ones warm up

        seen, whole = executor._call(work)  # noqa: SLF001
        names = {tuple(call.name for call in run.calls) for run in seen}
        if len(names) != 1:
            raise BenchmarkError("two inferences called other kernels", "profile a fixed network")
        return [Inference(run.calls, run.builtin) for run in seen], whole

    def _by_its_own_clock(
        self, inputs: "Sequence[np.ndarray[Any, Any]]", runs: int
    ) -> tuple[list[Inference], list[float]]:
        """Have a standalone library time its steps, and whole inferences in turns with that.

        Returns:
            Its steps as calls, and the seconds of the whole inferences.
        """
        library = self._network._executor._library  # noqa: SLF001  (only a profiler wants it)
        seen, whole = [], []
        for _ in range(runs + 1):
            seen.append(Inference([Call(*step) for step in library.profile(inputs)]))
            whole += self._network.time(*inputs, repeat=1, warmup=0)
        return seen[1:], whole[1:]


class _Instrument:
    """What the virtual machine calls around each of its calls.

    Args:
        again: Whether to run each kernel some more times on the spot.
    """

    def __init__(self, again: bool) -> None:
        self._again = again
        self.calls: list[Call] = []
        self.builtin = 0.0
        self._start = 0.0

    def __call__(self, function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        """Note the time; 0 tells the virtual machine to go on as usual."""
        now = time.perf_counter()
        builtin = name.startswith(_BUILTIN)
        if before:
            if not builtin:
                self.calls.append(Call(name))
                if self._again:
                    self.calls[-1].again = min(_seconds(function, args) for _ in range(_AGAIN))
            self._start = time.perf_counter()
        elif builtin:
            self.builtin += now - self._start
        else:
            self.calls[-1].seconds = now - self._start
        return 0


def _seconds(function: Any, args: Sequence[Any]) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
