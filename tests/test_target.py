# SPDX-License-Identifier: Apache-2.0
"""Every form of a machine gives one target; everything else gives one kind of error."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.target import Target

from tvmattend import target as target_module
from tvmattend.errors import TargetError
from tvmattend.target import PRESETS, TargetSpec, host_target, parse_target

A72 = TargetSpec("aarch64-linux-gnu", "cortex-a72", (), 4)

FORMS_OF_A72: list[str | Mapping[str, Any]] = [
    "cortex-a72",
    " Cortex-A72\n",
    "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72",
    "llvm -mcpu=cortex-a72",
    "llvm  --mcpu cortex-a72   -mtriple 'aarch64-linux-gnu'",
    "llvm -mtriple=arm64-linux-gnu -mcpu=cortex-a72 -num-cores=4",
    "llvm -device=arm_cpu -model=bcm2711 -mtriple=aarch64-linux-gnu -mattr=+neon -mcpu=cortex-a72",
    "llvm -keys=arm_cpu,cpu -mcpu=cortex-a72 -mattr=+crc,+aes,-dotprod",
    "llvm -mcpu=cortex-a72 -mattr=+crypto",
    {"kind": "llvm", "mcpu": "cortex-a72"},
    {"mcpu": "cortex-a72", "mtriple": "aarch64-unknown-linux-gnu", "mattr": ["+neon"]},
    {"tag": "raspberry-pi/4b-aarch64"},
    {"tag": "raspberry-pi/4b-aarch64", "mattr": ["+crc"], "num-cores": 4},
    '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4}',
    "raspberry-pi/4b-aarch64",
    "arm/rasp4b64",
]


@pytest.mark.parametrize("form", FORMS_OF_A72, ids=str)
def test_every_form_of_a_cortex_a72_is_the_same_target(form: str | Mapping[str, Any]) -> None:
    spec = parse_target(form)
    assert spec == A72
    assert spec.name == "cortex-a72"
    assert spec.arch == "aarch64"


def test_tvm_takes_the_target_and_gives_the_same_one_back() -> None:
    tvm_target = A72.to_tvm()
    assert isinstance(tvm_target, Target)
    assert list(tvm_target.keys) == ["arm_cpu", "cpu"]
    assert int(tvm_target.attrs["num-cores"]) == 4
    assert parse_target(dict(tvm_target.export())) == A72


FLAGS = ["+crc", "+neon", "+lse", "+dotprod", "-crc", "+fullfp16"]


@given(
    cpu=st.sampled_from([name for name in PRESETS if name[0] == "c"] + ["cortex-a57"]),
    flags=st.sets(st.sampled_from(FLAGS)).filter(lambda flags: not {"+crc", "-crc"} <= flags),
    cores=st.none() | st.integers(1, 64),
    vendor=st.sampled_from(["", "unknown-", "none-"]),
    shuffle=st.randoms(),
)
@settings(max_examples=60, deadline=None)
def test_all_spellings_of_one_machine_agree(
    cpu: str, flags: set[str], cores: int | None, vendor: str, shuffle: Any
) -> None:
    fields: dict[str, Any] = {"kind": "llvm", "mtriple": f"aarch64-{vendor}linux-gnu", "mcpu": cpu}
    ordered = sorted(flags)
    shuffle.shuffle(ordered)
    if ordered:
        fields["mattr"] = ordered
    if cores is not None:
        fields["num-cores"] = cores
    words = [
        f"-{key}={','.join(value) if key == 'mattr' else value}" for key, value in fields.items()
    ]
    words.remove("-kind=llvm")
    shuffle.shuffle(words)
    spec = parse_target(fields)
    assert parse_target(json.dumps(fields)) == spec
    assert parse_target(" ".join(["llvm", *words])) == spec
    assert parse_target(spec.to_json()) == spec
    assert parse_target(dict(spec.to_tvm().export())) == spec
    assert parse_target(fields, threads=7).name == spec.name
    assert not set(spec.name) & set("/\\ \0")


words = st.text(max_size=12) | st.sampled_from([
    "llvm",
    "-mcpu",
    "-mcpu=",
    "-mattr=+",
    "=",
    "-mtriple=x86_64",
    "cortex-a72",
    "-num-cores=0",
    "'",
])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(
    st.sampled_from(["kind", "mcpu", "mtriple", "mattr", "num-cores", "tag", "keys"])
    | st.text(max_size=6),
    json_values | st.sampled_from(["llvm", "cortex-a72", "+crc", "aarch64-linux-gnu"]),
    max_size=5,
)


def parses_or_refuses(text: Any) -> None:
    refusal: TargetError | None = None
    try:
        spec = parse_target(text)
    except TargetError as error:
        refusal = error
    if refusal is None:
        assert spec.num_cores >= 1
        assert spec.arch in {"aarch64", "x86_64"}
    else:
        assert str(refusal)
        assert refusal.hint
        assert refusal.exit_code == 3


@given(st.lists(words, max_size=5).map(" ".join))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_target_or_a_target_error(text: str) -> None:
    parses_or_refuses(text)
    parses_or_refuses(f"llvm {text}")


@given(objects)
@settings(max_examples=200, deadline=None)
def test_any_object_is_a_target_or_a_target_error(fields: dict[str, Any]) -> None:
    parses_or_refuses(fields)
    parses_or_refuses(json.dumps(fields))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "unknown target ``", "cortex-a72"),
        ("cortx-a72", "unknown target `cortx-a72`", "did you mean cortex-a72"),
        ("pi4", "unknown target", "-mcpu=cortex-a72"),
        ("llvm -mcpu=cortex-a7200", "no core `cortex-a7200`", "cortex-a72"),
        ("llvm -mcpu=", "-mcpu has no value", "-mcpu=VALUE"),
        ("llvm -mcpu", "-mcpu has no value", "-mcpu=VALUE"),
        ("llvm cortex-a72", "`cortex-a72` is not an option", "-mcpu=cortex-a72"),
        ("llvm -mcpu='cortex", "No closing quotation", "quotes"),
        ("llvm -mtriple=aarch64-linux-android", "triple", "aarch64-linux-gnu"),
        ("llvm -mtriple=armv7l-linux-gnueabihf -mcpu=cortex-a72", "triple", "aarch64-linux-gnu"),
        ("llvm -mtriple=x86_64-linux-gnu -mcpu=cortex-a72", "no core", ""),
        ("llvm -opt-level=3", "unknown option `opt-level`", "mcpu"),
        ("llvm -mcpu=cortex-a72 -mattr=crc", "`crc` is not a feature flag", "+crc"),
        ("llvm -mcpu=cortex-a72 -mattr=+lse,-lse", "`lse` is on and off", ""),
        ("llvm -mcpu=cortex-a72 -mattr=+dotprodd", "no feature `dotprodd`", "+dotprod"),
        ("llvm -mcpu=cortex-a72 -mattr=-nothing-such", "no feature `nothing-such`", "leave it out"),
        ("llvm -mcpu=x86-64-v3 -mattr=+sve", "no feature `sve`", ""),
        ("pentium", "unknown target `pentium`", "preset"),
        ("llvm -mcpu=pentium", "no core `pentium`", ""),
        ("llvm -mcpu=cortex-a72 -num-cores=0", "num-cores `0`", "1 or more"),
        ('{"kind": "llvm", "num-cores": 2.5}', "num-cores `2.5`", ""),
        ('{"kind": "llvm", "num-cores": true}', "num-cores `True`", ""),
        ('{"kind": "llvm", "mcpu": 72}', "mcpu is not text", ""),
        ('{"kind": "llvm", "mattr": 5}', "mattr is not a list", ""),
        ('{"kind": "llvm"', "not valid JSON", ""),
        ("{" + '"a":{' * 100_000, "not valid JSON", ""),
        ('{"kind": "cuda"}', "kind `cuda`", "llvm"),
        ('{"tag": "raspberry-pi/4b-aarch64", "bogus": 2}', "unknown option `bogus`", "num-cores"),
        ({"tag": "raspberry-pi/4c", "mcpu": "cortex-a72"}, "unknown target", "4b-aarch64"),
        ("nvidia/nvidia-a100", "kind `cuda`", "llvm"),
        ("arm/rasp3b", "armv7l-linux-gnueabihf", "aarch64-linux-gnu"),
        (None, "None", "preset"),
        (72, "72", "preset"),
    ],
)
def test_refusals_say_what_and_what_to_do(text: Any, message: str, hint: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("threads", [0, -3])
def test_threads_must_be_a_count(threads: int) -> None:
    with pytest.raises(TargetError, match="threads"):
        parse_target("cortex-a72", threads)


def test_threads_change_the_cores_and_not_the_name() -> None:
    spec = parse_target("cortex-a72", threads=2)
    assert (spec.num_cores, spec.name) == (2, "cortex-a72")
    assert spec.describe() == "llvm aarch64-linux-gnu cortex-a72, 2 threads"
    assert int(spec.to_tvm().attrs["num-cores"]) == 2


def test_fields_beside_a_tag_go_before_its_own() -> None:
    spec = parse_target({"tag": "raspberry-pi/4b-aarch64", "num-cores": 2})
    assert spec == replace(A72, num_cores=2)
    older = parse_target('{"tag": "raspberry-pi/4b-aarch64", "mcpu": "cortex-a53"}')
    assert older == replace(A72, cpu="cortex-a53")


def test_a_feature_that_the_core_lacks_is_another_machine() -> None:
    spec = parse_target("llvm -mcpu=cortex-a72 -mattr=+dotprod,+crc")
    assert spec.features == ("+dotprod",)
    assert spec.name == "cortex-a72+dotprod"
    assert spec.to_json()["mattr"] == ["+dotprod"]


def test_features_that_no_core_has_are_known_too() -> None:
    spec = parse_target("llvm -mcpu=cortex-a72 -mattr=+reserve-x18")
    assert spec.features == ("+reserve-x18",)


def test_a_core_may_stand_alone() -> None:
    assert parse_target("Skylake") == parse_target("llvm -mcpu=skylake")
    assert parse_target("neoverse-n1", 2) == parse_target("llvm -mcpu=neoverse-n1", 2)


def test_a_core_implies_its_architecture() -> None:
    assert parse_target("llvm -mcpu=neoverse-n1").arch == "aarch64"
    assert parse_target("llvm -mcpu=skylake").arch == "x86_64"


def test_presets_are_aarch64_cores_with_four_threads_levels_or_the_host() -> None:
    for name in PRESETS:
        spec = parse_target(name)
        if name == "host":
            assert spec == host_target()
        elif name.startswith("x86-64"):
            assert (spec.arch, spec.cpu) == ("x86_64", name)
            assert spec == parse_target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={name}")
        else:
            assert (spec.arch, spec.cpu, spec.num_cores) == ("aarch64", name, 4)


@pytest.mark.parametrize(
    ("cpu", "level"),
    [
        ("skylake", "x86-64-v3"),
        ("znver4", "x86-64-v4"),
        ("skylake-avx512", "x86-64-v4"),
        ("nehalem", "x86-64-v2"),
        ("k8", "x86-64"),
    ],
)
def test_an_x86_core_has_a_level_whose_records_are_its_own(cpu: str, level: str) -> None:
    spec = parse_target(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}", 2)
    assert spec.level == parse_target(level, 2)


@pytest.mark.parametrize("name", ["x86-64-v3", "cortex-a72"])
def test_a_level_and_an_arm_core_have_none(name: str) -> None:
    assert parse_target(name).level is None


# Of /proc/cpuinfo.
OF_LEVEL_3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe sse4_2 popcnt ssse3"


class TestHost:
    """Machines that this test does not run on, by their /proc/cpuinfo."""

    @pytest.fixture(autouse=True)
    def _forget(self) -> Any:
        target_module._host_cpu.cache_clear()
        yield
        target_module._host_cpu.cache_clear()

    def pretend(self, monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str) -> None:
        monkeypatch.setattr(target_module.platform, "machine", lambda: machine)
        monkeypatch.setattr(target_module.Path, "read_text", lambda *_, **__: cpuinfo)
        monkeypatch.setattr(target_module.os, "cpu_count", lambda: 6)

    @pytest.mark.parametrize(
        ("flags", "cpu"),
        [
            (f"avx512f avx512bw avx512cd avx512dq avx512vl {OF_LEVEL_3}", "x86-64-v4"),
            (OF_LEVEL_3, "x86-64-v3"),
            ("avx2 sse4_2 popcnt ssse3", "x86-64-v2"),
            ("sse2", "x86-64"),
        ],
    )
    def test_x86_is_named_by_its_level(
        self, monkeypatch: pytest.MonkeyPatch, flags: str, cpu: str
    ) -> None:
        self.pretend(monkeypatch, "x86_64", f"processor : 0\nflags\t\t: {flags}\n")
        spec = host_target()
        assert (spec.cpu, spec.name, spec.num_cores) == (cpu, cpu, 6)
        assert spec.is_host
        assert parse_target(f"llvm -mcpu={cpu}") == spec
        assert parse_target("llvm -mcpu=skylake-avx512").is_host == (cpu == "x86-64-v4")
        assert parse_target("llvm -mcpu=haswell").is_host == (cpu in {"x86-64-v4", "x86-64-v3"})
        assert not A72.is_host

    def test_x86_code_may_need_more_than_a_level(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend(monkeypatch, "x86_64", f"flags\t\t: {OF_LEVEL_3}\n")
        assert parse_target("llvm -mcpu=x86-64-v3 -mattr=-fma").is_host
        assert not parse_target("llvm -mcpu=x86-64-v3 -mattr=+avx512f,+avx512vl").is_host
        assert parse_target("llvm -mcpu=skylake").is_host
        assert not parse_target("llvm -mcpu=alderlake").is_host, "it has VNNI"

    def test_a_raspberry_pi_4_is_a_cortex_a72(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend(monkeypatch, "aarch64", "processor\t: 0\nCPU part\t: 0xd08\n")
        assert (host_target().name, host_target().num_cores) == ("cortex-a72", 6)
        assert A72.is_host
        assert parse_target("cortex-a53").is_host
        assert not parse_target("cortex-a76").is_host, "it lacks the dot product"
        assert not parse_target("llvm -mtriple=x86_64-linux-gnu").is_host

    @pytest.mark.parametrize("threads", [6, 200])
    def test_only_this_machine_and_its_levels_have_its_cores(
        self, monkeypatch: pytest.MonkeyPatch, threads: int
    ) -> None:
        self.pretend(monkeypatch, "x86_64", f"flags\t\t: {OF_LEVEL_3}\n")
        monkeypatch.setattr(target_module.os, "cpu_count", lambda: threads)
        for own in ("host", "x86-64-v3", "llvm -mcpu=x86-64-v2", '{"mcpu": "x86-64"}'):
            assert parse_target(own).num_cores == min(threads, 64), own
        for other in ("x86-64-v4", "skylake", "arm/rk3399", "neoverse-n1", "cortex-a53"):
            assert parse_target(other).num_cores == 4, other
        assert parse_target("host", 100).num_cores == 100

    def test_an_unknown_machine_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend(monkeypatch, "riscv64", "")
        with pytest.raises(TargetError, match="riscv64"):
            host_target()


def test_presets_need_no_tvm() -> None:
    code = (
        "import sys; from tvmattend.target import parse_target as p;"
        "p('cortex-a72'); p('llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72'); p('host');"
        "sys.exit('tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
