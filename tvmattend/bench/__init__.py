# SPDX-License-Identifier: Apache-2.0
"""Fair timing against other runtimes, and where the time of a bundle goes.

Nothing heavy is imported here: a worker process must load one runtime and no other.
"""
