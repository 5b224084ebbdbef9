# SPDX-License-Identifier: Apache-2.0
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tvmattend.errors import StorageError
from tvmattend.tuning.chatter import chatter_to


def test_what_c_code_and_children_write_goes_to_the_log_and_the_screen_stays(tmp_path, capfd):
    log = tmp_path / "logs" / "run.log"
    with chatter_to(log):
        os.write(2, b"from C\n")
        os.write(1, b"from C, on stdout\n")
        subprocess.run(
            [sys.executable, "-c", "import sys; sys.stderr.write('child\\n')"], check=True
        )
        logging.getLogger("tvmattend.tuning.run").info("a failure, in full")
    os.write(2, b"afterwards\n")
    text = log.read_text(encoding="utf-8")
    for words in ("from C\n", "from C, on stdout\n", "child\n", "a failure, in full\n"):
        assert words in text
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "afterwards\n"


def test_the_screen_is_the_real_one_in_a_process_of_its_own(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tvmattend.tuning.chatter import chatter_to, screen\n"
        f"with screen() as stream, chatter_to(Path({str(tmp_path / 'log')!r})):\n"
        "    print('progress', file=stream)\n"
        "    os.write(2, b'chatter')\n"
        "    print('python chatter', file=sys.stderr)\n"
        "print('done', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "progress\ndone\n"
    assert "python chatter" in (tmp_path / "log").read_text(encoding="utf-8")


def test_everything_is_put_back_after_an_error(tmp_path, capfd):
    def fail():
        with chatter_to(tmp_path / "log"):
            os.write(2, b"before\n")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    assert logging.getLogger("tvmattend").handlers == []


def test_a_log_that_takes_nothing_is_told_before_anything_is_said():
    with (
        pytest.raises(StorageError, match="`/dev/full`: No space left") as caught,
        chatter_to(Path("/dev/full")),
    ):
        pytest.fail("went on")
    assert "--log" in caught.value.hint


def test_a_log_is_appended_to(tmp_path):
    for word in (b"one\n", b"two\n"):
        with chatter_to(tmp_path / "log"):
            os.write(2, word)
    assert (tmp_path / "log").read_bytes() == b"\none\n\ntwo\n"


def test_a_disk_that_fills_up_costs_the_log_alone(tmp_path, capfd):
    """Of what it could not take, and of nothing else."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with chatter_to(tmp_path / "log"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            for handler in logging.getLogger("tvmattend").handlers:
                handler.stream.write("a message")  # what stays in the buffer until the end
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_no_log_changes_nothing(capfd):
    with chatter_to(None):
        os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"


def test_a_log_that_cannot_be_opened_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(StorageError, match="cannot write the log") as caught, chatter_to(tmp_path):
        pass
    assert "--log" in caught.value.hint
