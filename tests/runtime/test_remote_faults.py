# SPDX-License-Identifier: Apache-2.0
"""A bundle on a board that falls silent, hangs up or talks nonsense: `run`, `validate`, the API.

Each ends within the time-out that was given, with one line, and this process goes on.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fault_proxy import Fault, FaultProxy
from sample_bundles import INPUT, reference

from tvmattend.cli import run, validate
from tvmattend.device.endpoint import Endpoint, parse_endpoint
from tvmattend.device.process import ServerOptions, serve_here
from tvmattend.errors import BoardFullError, BoardUnreachableError, TvmattendError
from tvmattend.runtime.network import relative_error
from tvmattend.runtime.remote import load_remote

TIMEOUT = 4.0
# Starting the process and building the probe, on a busy machine.
OURS = 60.0


@contextmanager
def proxied(address: str) -> Iterator[FaultProxy]:
    with FaultProxy(parse_endpoint(address).port, lambda _: None) as proxy:
        yield proxy


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal(INPUT.shape).astype("float32")


@pytest.mark.parametrize("what", ["an inference", "timed runs"])
def test_a_board_that_falls_silent(
    sound_bundle: Path, host_board: str, x: np.ndarray, what: str
) -> None:
    with proxied(host_board) as proxy:
        place = Endpoint("127.0.0.1", proxy.port)
        with load_remote(sound_bundle, place, timeout=TIMEOUT) as net:
            assert relative_error(np.asarray(net(x)), reference(x)) < 1e-6
            proxy.silent.set()
            begun = time.monotonic()
            with pytest.raises(BoardUnreachableError, match=r"no answer within 4 s") as caught:
                net(x) if what == "an inference" else net.time(x, repeat=5)
            assert time.monotonic() - begun < TIMEOUT + 3
            assert "\n" not in str(caught.value)
            with pytest.raises(BoardUnreachableError, match="no session any more"):
                net(x)
        assert time.monotonic() - begun < TIMEOUT + 8, "closing does not wait for it either"


# Bytes that a connection passes before: none, a greeting, part of a session.
@pytest.mark.parametrize("after", [0, 60, 2000])
@pytest.mark.parametrize("kind", ["half-open", "cut", "garbage", "corrupt"])
@pytest.mark.parametrize("command", [run.command, validate.command])
def test_commands_end_in_time_with_one_line(
    sound_bundle: Path, host_board: str, command: object, kind: str, after: int
) -> None:
    with proxied(host_board) as proxy:
        proxy._plan = lambda _: Fault(kind, after)
        words = [str(sound_bundle), "--rpc", f"127.0.0.1:{proxy.port}", "--timeout", str(TIMEOUT)]
        begun = time.monotonic()
        result = CliRunner().invoke(command, words)  # type: ignore[arg-type]
        # At most: the look, then loading; each within the time-out.
        assert time.monotonic() - begun < OURS + 2 * TIMEOUT
    error = result.exception
    if kind == "corrupt" and error is None:
        return  # it changed what nobody reads
    assert isinstance(error, TvmattendError), (result.output, error)
    assert error.exit_code in {7, 9, 16}
    assert "\n" not in str(error)
    assert not result.stdout


def test_a_board_that_is_full_says_so(sound_bundle: Path) -> None:
    with serve_here(ServerOptions()) as server:
        most = (sound_bundle / "model.so").stat().st_size - 1
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, most))
        with (
            pytest.raises(BoardFullError, match=f"{server.port}: the board has kept {most} of"),
            load_remote(sound_bundle, Endpoint("127.0.0.1", server.port), timeout=TIMEOUT),
        ):
            pass
