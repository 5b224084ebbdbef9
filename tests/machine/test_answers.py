# SPDX-License-Identifier: Apache-2.0
"""LLVM's answers on disk: shared, and never believed where they are damaged."""

import multiprocessing
import shutil
import struct
from pathlib import Path

import pytest

from tvmattend.machine import answers as module
from tvmattend.machine import instructions
from tvmattend.machine.answers import Answer, Answers

FMLA = {"fmla\tv": Answer(1, 7, (("V", 2),))}
LOAD = {"ldr\tq, [x]": Answer(1, 5, (("L", 1),)), "nop": Answer(1, 1, ())}


def test_what_one_process_adds_another_reads_once(tmp_path):
    path = tmp_path / "deep" / "file"
    one, other = Answers(path), Answers(path)
    assert other.news() == {}
    one.add(FMLA)
    assert other.news() == FMLA
    one.add({})
    one.add(LOAD)
    assert other.news() == LOAD
    assert other.news() == {}
    assert Answers(path).news() == {**FMLA, **LOAD}


def test_wherever_a_line_is_torn_the_others_stay(tmp_path):
    path = tmp_path / "file"
    Answers(path).add(FMLA)
    first = path.read_bytes()
    Answers(path).add(LOAD)
    whole = path.read_bytes()
    for end in range(len(first), len(whole) - 1):  # without its newline a line is whole
        path.write_bytes(whole[:end])
        assert Answers(path).news() == FMLA
        Answers(path).add({"ret": Answer(1, 1, (("B", 1),))})
        assert Answers(path).news() == {**FMLA, "ret": Answer(1, 1, (("B", 1),))}


def test_no_changed_byte_is_believed(tmp_path):
    path = tmp_path / "file"
    Answers(path).add(FMLA)
    sound = path.read_bytes()
    for at in range(len(sound)):
        damaged = bytearray(sound)
        damaged[at] ^= 0x04
        path.write_bytes(damaged)
        assert Answers(path).news() == {}


def add_many(path: Path, name: str) -> None:
    answers = Answers(path)
    for number in range(200):
        answers.add({f"{name}\t{number}": Answer(1, number, (("L", 1),))})


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "file"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add_many, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Answers(path).news()) == 600


def test_a_file_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    path = tmp_path / "file"
    reader = Answers(path)
    for number in range(100):
        Answers(path).add({f"add\t{number}": Answer(1, 1, (("I", 1),))})
        assert f"add\t{number}" in reader.news()
        assert path.stat().st_size <= 1000


def test_a_directory_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    answers = Answers(tmp_path / "file" / "below")
    answers.add(FMLA)
    assert answers.news() == {}


@pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="needs the package `llvm`")
def test_the_second_process_asks_llvm_nothing_and_knows_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TVMATTEND_CACHE", str(tmp_path))
    words = struct.unpack("<3I", bytes.fromhex("20cc214e4100c03dc0035fd6"))  # fmla, ldr, ret

    def forget():
        for name in ("_plain", "_shapes"):
            monkeypatch.setattr(instructions, name, {})
        instructions._cost.cache_clear()
        instructions._kept.cache_clear()

    forget()
    asked = instructions.costs_of(words)
    (file,) = (tmp_path / "llvm").iterdir()
    assert "cortex-a72-" in file.name
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(instructions, "_analyse", lambda texts: pytest.fail(f"asked: {texts}"))
        assert instructions.costs_of(words) == asked
    forget()
    file.write_bytes(file.read_bytes()[:-5])
    assert instructions.costs_of(words) == asked
    forget()


@pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="needs the package `llvm`")
def test_a_constant_does_not_make_a_shape_but_a_shift_does():
    texts = ["add\tx1, x2, #8", "add\tx3, x3, #4095", "mov\tw0, #0", "mov\tw5, #65535"]
    assert len({instructions._shape(text) for text in texts}) == 2
    answers = instructions._analyse(texts)
    assert answers[texts[0]] == answers[texts[1]]
    assert answers[texts[2]] == answers[texts[3]]
    shifted = ["add\tx1, x2, x3, lsl #2", "add\tx1, x2, x3, lsl #5", "lsl\tx1, x2, #3"]
    assert len({instructions._shape(text) for text in shifted}) == 3
