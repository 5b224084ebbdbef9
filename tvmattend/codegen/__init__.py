# SPDX-License-Identifier: Apache-2.0
"""From scheduled IRModules to objects, and from objects to a `.so` for the target."""
