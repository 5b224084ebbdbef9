# SPDX-License-Identifier: Apache-2.0
"""The `tvmattend` command: one file a subcommand; parses, prints, turns errors into exit codes."""
