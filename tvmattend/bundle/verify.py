# SPDX-License-Identifier: Apache-2.0
"""Check a bundle before anything of it is loaded.

The comparison of files with hashes is the device's own (`runtime/network.py`), so that host and
device agree on what a sound bundle is; this adds the strict reading of the manifest.
"""

from pathlib import Path

from tvmattend.bundle.manifest import Manifest
from tvmattend.errors import BundleError
from tvmattend.runtime import network


def verify(directory: str | Path) -> Manifest:
    """Check every file of a bundle; nothing is imported, unpickled or mapped as code.

    Raises:
        BundleError: No bundle; a file is missing, truncated, changed, extra or a symbolic link; a
            path leads out of it; the manifest is of a newer schema or malformed.
    """
    place = Path(directory)
    try:
        manifest = Manifest.from_json(network.read_manifest(place))
        network.check_files(place, {name: vars(entry) for name, entry in manifest.files.items()})
    except network.BundleError as error:
        raise BundleError(str(error), error.hint) from error
    except OSError as error:
        raise BundleError(f"{error.filename or place}: {error.strerror}") from error
    return manifest
