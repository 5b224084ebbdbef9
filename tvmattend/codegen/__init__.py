# SPDX-License-Identifier: Apache-2.0
"""From scheduled IRModules to objects, and from objects to a `.so` for the target."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazy: `codegen.link` is wanted by rooms that must not pay for the whole build.
    if name in {"BuildReport", "build", "bundle_directory"}:
        from tvmattend.codegen import building

        return getattr(building, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
