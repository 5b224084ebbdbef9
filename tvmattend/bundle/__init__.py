# SPDX-License-Identifier: Apache-2.0
"""The bundle: a directory with a compiled network and all that a device needs to run it."""

from tvmattend.bundle.manifest import (
    KernelSchedule,
    Manifest,
    Preprocessing,
    RecordCounts,
    Weights,
)
from tvmattend.bundle.verify import verify
from tvmattend.bundle.writer import BundleContents, check_output, write_bundle

__all__ = [
    "BundleContents",
    "KernelSchedule",
    "Manifest",
    "Preprocessing",
    "RecordCounts",
    "Weights",
    "check_output",
    "verify",
    "write_bundle",
]
