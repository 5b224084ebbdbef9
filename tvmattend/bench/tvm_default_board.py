# SPDX-License-Identifier: Apache-2.0
"""TVM's own pipeline for a board: its library in a bundle of ours, which needs no TVM there."""

from tvmattend.bench import tvm_default
from tvmattend.bundle import BundleContents, RecordCounts, Weights, write_bundle
from tvmattend.frontend import import_model


class Adapter(tvm_default.Adapter):
    """Converts only; what runs it on the board is the runtime that ships in bundles."""

    def convert(self) -> None:
        """Compile as TVM does, and pack."""
        super().convert()
        imported = import_model(self._setup.request)
        inputs = next(iter(imported.sample_inputs(1)))
        write_bundle(
            self._setup.directory / "bundle",
            BundleContents(
                library=self._library,
                target=self._setup.target,
                model=imported.name,
                inputs=imported.inputs,
                outputs=imported.outputs,
                golden=[(inputs, imported.reference(inputs))],
                reference=imported.reference_name,
                weights=Weights(imported.weights, imported.weights_sha256, imported.seed),
                records=RecordCounts(),
            ),
        )
