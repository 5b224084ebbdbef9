# SPDX-License-Identifier: Apache-2.0
"""Damaged manifests, bundles, signatures, records and targets, each put to what reads it.

python mutation_cases.py KIND SEED FIRST COUNT PLACE

runs in a process of its own: a crash or a hang of it is a find as well. It writes a line before
each case and one with the sums at the end. A case that ends in anything but an answer or an error
of the project's own is printed, and the process fails.
"""

import io
import json
import os
import random
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutations import mutate_bytes, mutate_json, mutate_text, nasty

from tvmattend.errors import TargetError, TvmattendError
from tvmattend.runtime import network

Case = Callable[[random.Random], str]
# A case that computes for longer is a hang, or near to one; who waits instead is noticed outside.
SLOW_SECONDS = 10.0


class FindError(AssertionError):
    """Something was accepted, or said, that must not be."""


def _outcome(action: Callable[[], Any]) -> str:
    """Run a reader; give how it ended. What is no error of ours goes up."""
    try:
        action()
    except (TvmattendError, network.DeviceError) as error:
        text = f"{error}\n{error.hint}"
        text.encode()  # it is to be printed
        if "\n" in str(error) or "\x1b" in text or not str(error):
            raise FindError(f"not one line for a terminal: {text!r}") from error
        return type(error).__name__
    return "accepted"


class Bundles:
    """Bundles of both formats in `PLACE`, sound before each case; canaries are all around.

    `PLACE` holds `vm`, `standalone` (signed by `key.pub`), `canary.so`, `canary.py`.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._canary = (place / "canary.so").read_bytes()
        self._python = (place / "canary.py").read_bytes()
        self._key = place / "key.pub"
        self._trace = Path(os.environ["TVMATTEND_CANARY"])
        self._sound = {
            kind: {
                path.relative_to(place / kind).as_posix(): path.read_bytes()
                for path in (place / kind).rglob("*")
                if path.is_file()
            }
            for kind in ("vm", "standalone")
        }
        outside = str(place / "canary.so")
        self._paths = ("../canary.so", outside, "lib/../../canary.so", "lib", "lib/libtvm_ffi.so")

    def manifest(self, dice: random.Random) -> str:
        """A manifest that was changed, unsigned: an answer or an error; signed: an error."""
        kind, bundle, files = self._choose(dice)
        data = json.loads(files["manifest.json"])
        text = mutate_text(dice, data, self._paths)
        (bundle / "manifest.json").write_bytes(text)
        try:
            said = self._read(bundle, changed=text != files["manifest.json"])
            if "accepted" in said:
                _command(dice, bundle)
        finally:
            (bundle / "manifest.json").write_bytes(files["manifest.json"])
        return f"{kind} {said}"

    def files(self, dice: random.Random) -> str:
        """A file that is missing, cut, changed, extra, exchanged or of another kind: an error."""
        kind, bundle, files = self._choose(dice)
        name = dice.choice([name for name in files if name != "signature.json"])
        file = bundle / name
        # What a changed manifest may say is the other kind's question.
        act = dice.randrange(8) if name != "manifest.json" else dice.choice((0, 1, 3, 4, 5, 7))
        new = (self._canary, self._python, mutate_bytes(dice, files[name]))[min(act, 2)]
        try:
            file.unlink()
            if act in {0, 1, 2}:
                file.write_bytes(new)
            elif act == 3:
                file.symlink_to(self._place / "canary.so")
            elif act == 4:
                os.mkfifo(file)
            elif act == 5:
                file.mkdir()
            elif act == 6:
                file.write_bytes(files[name])
                strange = bundle / dice.choice(["x.so", "lib/x.so", "numpy.py", "sub/x", "é\n.py"])
                strange.parent.mkdir(exist_ok=True)
                strange.write_bytes(dice.choice((self._canary, self._python, b"")))
            same = act == 2 and new == files[name]
            said = self._read(bundle, changed=not same)
            if not same and "accepted" in said:
                raise FindError(f"{name}, act {act}, was accepted: {said}")
        finally:
            self._restore(kind)
        return f"{kind} {said}"

    def forged(self, dice: random.Random) -> str:
        """Data that was changed with its sum: whoever builds bundles may; it must not crash us."""
        kind, bundle, files = self._choose(dice)
        name = dice.choice(["golden.npz", "README.md"])
        content = mutate_bytes(dice, files[name]) if dice.randrange(3) else _npz(dice)
        (bundle / name).write_bytes(content)
        data = json.loads(files["manifest.json"])
        data["files"][name] = {
            "sha256": network.file_sha256(bundle / name), "size": len(content),
        }  # fmt: skip
        (bundle / "manifest.json").write_text(json.dumps(data))
        try:
            said = self._read(bundle, changed=True)
        finally:
            self._restore(kind)
        return f"{kind} {said}"

    def signature(self, dice: random.Random) -> str:
        """A signature or a key that was changed: never accepted."""
        _, bundle, files = self._choose(dice)
        sound, key = json.loads(files["signature.json"]), self._key.read_bytes()
        text, given = files["signature.json"], key
        if dice.randrange(2):
            text = mutate_text(dice, sound)
        else:
            given = mutate_bytes(dice, key) if dice.randrange(4) else str(nasty(dice)).encode(
                errors="replace")  # fmt: skip
        (bundle / "signature.json").write_bytes(text)
        file = self._place / "given.pub"
        file.write_bytes(given)
        from tvmattend.bundle import verify

        try:
            said = _outcome(lambda: verify(bundle, require_signature=file))
            also = _outcome(lambda: network.read_manifest(bundle, given))
        finally:
            (bundle / "signature.json").write_bytes(files["signature.json"])
        if said == "accepted" and not self._same_signature(text, sound, given):
            raise FindError(f"accepted {text!r} for {given!r}")
        return f"{said} {also}"

    def _same_signature(self, text: bytes, sound: Any, key: bytes) -> bool:
        """Whether what was changed means the same: a space, an unknown field, a line's end."""
        from tvmattend.runtime import signature

        data = json.loads(text)
        fields = ("schema", "algorithm", "public_key", "signature")
        raw = signature.raw_key(signature.public_key(key))
        good = signature.raw_key(signature.public_key(self._key))
        return raw == good and all(data[name] == sound[name] for name in fields)

    def _read(self, bundle: Path, changed: bool) -> str:
        """Put a bundle to `verify` and `load`, without a signature and with one required."""
        from tvmattend.bundle import verify

        said = [_outcome(lambda: verify(bundle)), _outcome(lambda: _use(bundle))]
        wanted = [
            _outcome(lambda: verify(bundle, require_signature=self._key)),
            _outcome(lambda: network.load(bundle, 1, self._key)),
        ]
        if changed and "accepted" in wanted:
            raise FindError(f"changed, and accepted with a signature: {said} {wanted}")
        if self._trace.exists():
            raise FindError(f"code of a file that was not checked was run: {said} {wanted}")
        return " ".join(said)

    def _choose(self, dice: random.Random) -> tuple[str, Path, dict[str, bytes]]:
        kind = dice.choice(("vm", "standalone", "standalone"))
        return kind, self._place / kind, self._sound[kind]

    def _restore(self, kind: str) -> None:
        bundle, files = self._place / kind, self._sound[kind]
        for path in sorted(bundle.rglob("*"), reverse=True):
            name = path.relative_to(bundle).as_posix()
            if path.is_dir() and not path.is_symlink():
                if not any(known.startswith(f"{name}/") for known in files):
                    shutil.rmtree(path)
            elif path.is_symlink() or not path.is_file() or path.read_bytes() != files.get(name):
                path.unlink()
        for name, content in files.items():
            if not (bundle / name).exists():
                (bundle / name).write_bytes(content)


def _use(bundle: Path) -> None:
    """What a user does with a bundle that loads."""
    import numpy as np

    net = network.load(bundle, threads=1)
    with np.errstate(all="ignore"):
        net.golden_errors()
        net.self_test()
        net(*[np.zeros(spec.shape, spec.dtype) for spec in net.inputs])
        net.classify(np.zeros((40, 30, 3), np.uint8), top=3)


def _command(dice: random.Random, bundle: Path) -> None:
    """What a user types: one line and a code of ours if it fails, JSON where it was asked for."""
    from click.testing import CliRunner

    from tvmattend.cli.main import cli

    more = dice.choice((["--json"], [], ["--threads", "1"]))
    words = [dice.choice(("run", "validate")), str(bundle), *more]
    words += ["--repeat", "1"] if words[0] == "run" else []
    result = CliRunner().invoke(cli, words)
    error = result.exception
    if error is not None and not hasattr(error, "exit_code"):
        raise FindError(f"{words}: {error!r}") from error
    if error is None and "--json" in words:
        json.loads(result.stdout)


def _npz(dice: random.Random) -> bytes:
    """An archive of arrays, most of which are not what is expected."""
    import numpy as np

    kinds: list[Any] = [np.float32, np.float64, np.int8, "S3", "U2", "V4", np.complex64]
    names = ["input0", "output0", "input1", "x"]
    stream = io.BytesIO()
    arrays = {
        name: np.zeros(dice.choice([(), (0,), (2,), (2, 1, 3, 64, 64), (2, 1, 10)]),
                       dice.choice(kinds))
        for name in dice.sample(names, dice.randrange(5))
    }  # fmt: skip
    np.savez(stream, **arrays)
    return stream.getvalue()


class Records:
    """Files of records, from those that ship."""

    def __init__(self, place: Path) -> None:
        from tvmattend.target import parse_target

        self._file = place / "records.jsonl"
        self._lines = (place / "sound.jsonl").read_text().splitlines()
        self._target = parse_target(json.loads(self._lines[0])["target"])

    def case(self, dice: random.Random) -> str:
        """Read, rank, mend, append and prune."""
        lines = [line.encode() for line in dice.sample(self._lines, dice.randrange(1, 4))]
        for _ in range(dice.choice((1, 1, 2))):
            place = dice.randrange(len(lines))
            lines[place] = self._damage(dice, lines[place])
        text = b"\n".join(lines) + dice.choice((b"\n", b"", b"\r\n", b"\n\n"))
        self._file.write_bytes(mutate_bytes(dice, text) if dice.randrange(4) == 0 else text)
        return f"{_outcome(self._read)} {_outcome(self._write)}"

    def _damage(self, dice: random.Random, line: bytes) -> bytes:
        changed = mutate_json(dice, json.loads(self._lines[0]))
        whole = json.dumps(changed, separators=(",", ":")).encode()
        return dice.choice((whole, whole, mutate_bytes(dice, line)))

    def _read(self) -> None:
        from tvmattend.tuning.records import RecordSet, find_records, read_records

        records, faults = read_records(self._file)
        for fault in faults:
            str(fault).encode()
        found = RecordSet(tuple(records), tuple(range(len(records))), (self._file,), tuple(faults))
        found.describe().encode()
        for record in records:
            found.best(record.key, 4)
            found.count(record.key)
            record.is_for(self._target)
            record.to_line().encode()
        find_records("none", self._target, extra=[self._file], roots=[])

    def _write(self) -> None:
        from tvmattend.tuning.record import parse_record
        from tvmattend.tuning.record_file import RecordFile, prune_files, read_records

        good = parse_record(self._lines[0])
        RecordFile(self._file).repair()
        before = len(read_records(self._file)[0])
        RecordFile(self._file).append(good)
        if len(read_records(self._file)[0]) != before + 1:
            raise FindError("a record that was appended is not there, or took one along")
        prune_files([self._file], 2)


_WORDS = (
    "llvm", "cortex-a72", "cortex-a53", "host", "generic", "x86-64-v3", "aarch64-linux-gnu",
    "-mtriple=aarch64-linux-gnu", "-mtriple=x86_64-linux-gnu", "-mcpu=cortex-a72", "-mcpu",
    "-mattr=+crc", "-mattr=+neon,-crc", "-num-cores=4", "-num-cores=0", "-num-cores=99999",
    "-keys=arm_cpu,cpu", "-device=arm_cpu", "--mcpu=cortex-a72", "-mcpu=", "=", "-", "--", "'", '"',
    "\\", "{", "}", "cuda", "raspberry-pi/4b-aarch64", "-mtriple=armv7-linux-gnueabihf", "\0",
    "\ud800", "é", " ", "\t", "\n", "-mattr=", "-mattr=,", "-mattr=+v8.2a", "-mattr=+nosuch",
    "-libs=mkl", "-mcpu=znver3", "-opt-level=9",
)  # fmt: skip
_OBJECT = {
    "kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4,
    "mattr": ["+crc", "+aes"], "keys": ["arm_cpu", "cpu"], "tag": "", "device": "arm_cpu",
}  # fmt: skip


def target(dice: random.Random) -> str:
    """A target in any form: understood, and then the same in every form, or refused."""
    from tvmattend.target import parse_target

    form = dice.randrange(4)
    text: Any
    if form == 0:
        text = " ".join(dice.choice(_WORDS) for _ in range(dice.randrange(6)))
    elif form == 1:
        text = mutate_text(dice, _OBJECT).decode(errors="surrogateescape")
    elif form == 2:
        text = mutate_json(dice, _OBJECT)
    else:
        words = b"llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72 -mattr=+crc -num-cores=4"
        text = mutate_bytes(dice, words).decode(errors="replace")
    threads = dice.choice((None, None, 1, 4, 0, -1))

    def read() -> None:
        spec = parse_target(text, threads)
        (spec.name + spec.describe()).encode()
        spec.is_host  # noqa: B018  (it asks LLVM)
        if parse_target(spec.to_json()) != spec or parse_target(json.dumps(spec.to_json())) != spec:
            raise FindError(f"{spec} is another when it is read back")
        spec.to_tvm()

    said = _outcome(read)
    if said not in {"accepted", TargetError.__name__}:
        raise FindError(f"{said} for a target")
    return said


def cases(kind: str, place: Path) -> Case:
    """Give the function that does one case of a kind."""
    if kind == "target":
        return target
    if kind == "records":
        return Records(place).case
    return {  # type: ignore[no-any-return]
        name: getattr(Bundles(place), name) for name in ("manifest", "files", "forged", "signature")
    }[kind]


def main() -> int:
    """Run COUNT cases from number FIRST on."""
    kind, seed, first, count, place = sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])
    warnings.simplefilter("ignore")
    # tvm_ffi would import it, for seconds, and nothing here needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    case, ends, finds, worst = cases(kind, place), Counter[str](), 0, 0.0
    for number in range(first, first + count):
        print("case", number, flush=True)  # noqa: T201
        start = time.process_time()  # other programs may be busy as well
        try:
            ends[case(random.Random(f"{kind} {seed} {number}"))] += 1
        except Exception:  # noqa: BLE001  (that is what is looked for)
            finds += 1
            text = traceback.format_exc().encode(errors="backslashreplace").decode()
            print(f"FIND {kind} {seed} {number}\n{text}", flush=True)  # noqa: T201
        worst = max(worst, time.process_time() - start)
    print("slowest", round(worst, 2), "s; ends", json.dumps(ends.most_common()))  # noqa: T201
    return 1 if finds or worst > SLOW_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
