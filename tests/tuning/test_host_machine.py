# SPDX-License-Identifier: Apache-2.0
"""This machine, as records describe it."""

from pathlib import Path

from tvmattend.target import parse_target
from tvmattend.tuning import machine


def test_what_linux_keeps_to_itself_is_not_known(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine, "host_target", lambda: parse_target("cortex-a72"))
    monkeypatch.setattr(Path, "read_text", refuse)
    told = machine.host_machine()
    assert (told["cores"], told["clock_mhz"], told["governor"]) == (0, 0.0, "")
    assert machine.describe_machine(told) == "cortex-a72"
