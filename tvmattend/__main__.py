# SPDX-License-Identifier: Apache-2.0
"""`python -m tvmattend` is the `tvmattend` command."""

from tvmattend.cli.main import main

if __name__ == "__main__":
    main()
