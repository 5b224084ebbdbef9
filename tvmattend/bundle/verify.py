# SPDX-License-Identifier: Apache-2.0
"""Check a bundle before anything of it is loaded.

The comparison of files with hashes is the device's own (`runtime/contents.py`), so that host
and device agree on what a sound bundle is; this adds the strict reading of the manifest.
"""

from pathlib import Path
from typing import Any

from tvmattend.bundle.manifest import Manifest
from tvmattend.errors import BundleError, SignatureError, ToolMissingError
from tvmattend.runtime import network


def verify(directory: str | Path, require_signature: Any = None) -> Manifest:
    """Check every file of a bundle; nothing is imported, unpickled or mapped as code.

    Args:
        directory: The bundle.
        require_signature: A public key that must have signed it; see `tvmattend.runtime.load`.

    Raises:
        BundleError: No bundle; a file is missing, truncated, changed, extra or a symbolic link; a
            path leads out of it; the manifest is of a newer schema or malformed.
        SignatureError: The signature is missing or another's, or the key cannot be read.
        ToolMissingError: A signature is required and `cryptography` is not installed.
    """
    place = Path(directory)
    try:
        manifest = Manifest.from_json(network.read_manifest(place, require_signature))
        network.check_files(place, {name: vars(entry) for name, entry in manifest.files.items()})
    except network.BundleError as error:
        raise BundleError(str(error), error.hint) from error
    except network.SignatureError as error:
        raise SignatureError(str(error), error.hint) from error
    except network.ToolMissingError as error:
        raise ToolMissingError(str(error), error.hint) from error
    return manifest
