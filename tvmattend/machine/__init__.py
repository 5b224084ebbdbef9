# SPDX-License-Identifier: Apache-2.0
"""The Cortex-A72 without a board: execution counts, port model, caches, and what they add up to."""
