# SPDX-License-Identifier: Apache-2.0
"""What a probe finds out, on this machine; the emulated board's are in test_board_emulated.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvmattend.device.board import BoardInfo, notes, parse_cpuinfo, probe
from tvmattend.device.endpoint import parse_endpoint
from tvmattend.device.killable import KillableWorker
from tvmattend.device.probe_kernel import build_probe
from tvmattend.errors import BoardMismatchError, BoardUnreachableError
from tvmattend.target import TargetSpec, host_target, parse_target

A72 = parse_target("cortex-a72")


class _Here(KillableWorker):
    """Calls in this process, where tests can change what is called."""

    def call(self, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        del seconds
        return function(*arguments)


# Of a Raspberry Pi 4B, four times, and of an RK3399 (shortened: Linux writes more lines for each).
_PI4 = "".join(
    f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\n"
    "CPU revision\t: 3\n\n"
    for number in range(4)
)
_PI4 += "Revision\t: c03111\nSerial\t\t: 10\nModel\t\t: Raspberry Pi 4 Model B Rev 1.1\n"
_RK3399 = "".join(
    f"processor\t: {number}\nCPU part\t: {part}\n"
    for number, part in enumerate(["0xd03"] * 4 + ["0xd08"] * 2)
)
_X86 = "".join(
    f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\n\n"
    for number in range(2)
)


def test_cpuinfo_of_boards() -> None:
    pi = parse_cpuinfo(_PI4)
    assert (pi.cores, pi.count, pi.x86) == (("cortex-a72",), 4, False)
    assert pi.model == "Raspberry Pi 4 Model B Rev 1.1"
    mixed = parse_cpuinfo(_RK3399)
    assert (mixed.cores, mixed.count) == (("cortex-a53", "cortex-a72"), 6)
    intel = parse_cpuinfo(_X86)
    assert (intel.cores, intel.count, intel.x86) == ((), 2, True)
    assert intel.model == "Intel(R) Xeon(R)"
    assert parse_cpuinfo("processor : 0\nCPU part : 0xfff\n").cores == ("0xfff",)
    assert parse_cpuinfo("").count == 0


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"core": "cortex-a72", "core_count": 4, "governor": "performance"}, []),
        (
            {"core": "cortex-a53", "core_count": 4},
            ["core is cortex-a53, the target's is cortex-a72"],
        ),
        ({"core": "cortex-a53+cortex-a72", "core_count": 6}, ["mixes cores"]),
        ({"core": "cortex-a72", "core_count": 2}, ["has 2 cores, the target 4"]),
        ({"core": "cortex-a72", "governor": "ondemand"}, ["`ondemand`: times will vary"]),
        ({"core": "cortex-a72", "core_count": 2, "emulated": True}, ["is emulated"]),
        ({}, []),
    ],
)
def test_notes(facts: dict[str, object], expected: list[str]) -> None:
    info = BoardInfo("pi4:9090", "aarch64", **facts)  # type: ignore[arg-type]
    found = notes(info, A72)
    assert len(found) == len(expected)
    assert all(part in note for part, note in zip(expected, found, strict=True))


def test_probe_of_this_machine(host_board: str) -> None:
    import os

    target = host_target()
    info = probe(host_board, target)
    assert info.endpoint == host_board
    assert (info.machine, info.emulated) == (target.arch, False)
    assert info.core_count == os.cpu_count()
    assert info.tvm_version == "0.27.0.post1"
    assert "emulated" not in " ".join(info.notes)
    assert info.describe().startswith(f"{host_board}: ")
    assert info.to_json()["notes"] == list(info.notes)


def test_probe_leaves_the_board_free(host_board: str) -> None:
    for _ in range(3):
        probe(parse_endpoint(host_board), host_target(), timeout=20)


@pytest.mark.skipif(host_target().arch == "aarch64", reason="this machine runs such code")
def test_a_board_of_another_architecture(host_board: str) -> None:
    with pytest.raises(BoardMismatchError) as caught:
        probe(host_board, A72)
    assert f"the board is {host_target().arch}, the target is aarch64" in str(caught.value)
    assert "--target" in caught.value.hint
    probe(host_board, host_target())  # the refusal did not cost the board


def test_a_library_that_does_not_load_for_another_reason(
    host_board: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(target: TargetSpec, output: Path, cross_compiler: str | None = None) -> None:
        build_probe(target, output, cross_compiler)
        output.write_bytes(output.read_bytes()[:600])

    monkeypatch.setattr("tvmattend.device.board.KillableWorker", _Here)
    monkeypatch.setattr("tvmattend.device.board.build_probe", damaged)
    with pytest.raises(BoardMismatchError, match="the board cannot load a library") as caught:
        probe(host_board, host_target())
    assert "glibc 2.28" in caught.value.hint


def test_a_kernel_that_crashes_there(
    host_board: str,
    misbehaving: Callable[[TargetSpec], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = host_target()
    library = misbehaving(target)
    monkeypatch.setattr("tvmattend.device.board.KillableWorker", _Here)
    monkeypatch.setattr(
        "tvmattend.device.board.build_probe",
        lambda _target, output, _compiler: output.write_bytes(library.read_bytes()),
    )
    monkeypatch.setattr(
        "tvmattend.device.probe_kernel.ProbeModule.add", lambda self: self._module["crash"]()
    )
    with pytest.raises(BoardMismatchError, match=f"{target.name} crashed there .*process died"):
        probe(host_board, target)
    monkeypatch.setattr(
        "tvmattend.device.probe_kernel.ProbeModule.add", lambda self: self._module["forever"]()
    )
    with pytest.raises(BoardUnreachableError, match="stopped answering"):
        probe(host_board, target, timeout=0.5)
    monkeypatch.undo()
    probe(host_board, target)


def test_wrong_sums_are_a_mismatch(host_board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmattend.device.board.KillableWorker", _Here)
    monkeypatch.setattr("tvmattend.device.probe_kernel.ProbeModule.add", lambda _self: False)
    with pytest.raises(BoardMismatchError, match="wrong sums"):
        probe(host_board, host_target())


def test_an_unreachable_board_is_found_out_before_anything_is_compiled(
    closed_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: object) -> None:
        pytest.fail("something was compiled")

    monkeypatch.setattr("tvmattend.device.board.build_probe", compiled)
    with pytest.raises(BoardUnreachableError, match=closed_port):
        probe(closed_port, A72)
