# SPDX-License-Identifier: Apache-2.0
"""Boards: serving one, emulating one, and reaching one."""
