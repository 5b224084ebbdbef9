# SPDX-License-Identifier: Apache-2.0
"""The bundle: a directory with a compiled network and all that a device needs to run it."""

from tvmattend.bundle.kernels import KernelLaunch, KernelSchedule, RecordCounts
from tvmattend.bundle.manifest import Manifest, Weights
from tvmattend.bundle.verify import verify
from tvmattend.bundle.writer import BundleContents, check_output, write_bundle

__all__ = [
    "BundleContents",
    "KernelLaunch",
    "KernelSchedule",
    "Manifest",
    "RecordCounts",
    "Weights",
    "check_output",
    "verify",
    "write_bundle",
]
