# SPDX-License-Identifier: Apache-2.0
"""The `tvmattend` command, and `python -m tvmattend`: light, so that Ctrl-C finds it ready."""

import sys


def main() -> None:
    """Run the command line; ended while it is still being imported, it says so as later."""
    try:
        from tvmattend.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
