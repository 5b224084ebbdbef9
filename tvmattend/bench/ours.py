# SPDX-License-Identifier: Apache-2.0
"""tvmattend itself: a bundle made by `build`, run by the runtime that ships inside bundles."""

from typing import Any

import numpy as np

from tvmattend.bench.runtime import Arrays, Setup
from tvmattend.runtime import load


class Adapter:
    """Drives tvmattend."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._bundle = setup.directory / "bundle"

    def convert(self) -> dict[str, int]:
        """Build the bundle; give the number of kernels by the origin of their schedules."""
        from tvmattend.codegen.building import DEFAULT_FORMAT, build

        report = build(
            self._setup.request,
            self._setup.target,
            output=self._bundle,
            tuning_records=self._setup.records,
            use_records=self._setup.use_records,
            format=self._setup.bundle_format or DEFAULT_FORMAT,
        )
        return report.origins()

    def prepare(self) -> None:
        """Load it."""
        self._network = load(self._bundle, threads=self._setup.threads)

    def version(self) -> str:
        """Give the version that built the bundle."""
        return str(self._network.manifest["versions"]["tvmattend"])

    def feed(self, inputs: Arrays) -> None:
        """Keep the inputs; `time` puts them into the network's buffers."""
        self._inputs = list(inputs)

    def run(self) -> None:
        """Infer, with the copies in and out that a caller pays."""
        result = self._network(*self._inputs)
        self._outputs = list(result) if isinstance(result, tuple) else [result]

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Give what the last run gave."""
        return self._outputs

    def time(self, count: int) -> list[float]:
        """Time inferences alone, as for all others: the runtime's own clock leaves copies out."""
        return self._network.time(*self._inputs, repeat=count, warmup=0)
