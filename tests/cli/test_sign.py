# SPDX-License-Identifier: Apache-2.0
"""`tvmattend sign`, and `--require-signature` of the commands that load a bundle."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sample_bundles import rewrite_manifest

from tvmattend.cli.main import cli
from tvmattend.errors import SignatureError
from tvmattend.runtime import network


def call(*words: Any) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def key(tmp_path: Path) -> Path:
    result = call("sign", "--new-key", tmp_path / "key.pem")
    assert result.exit_code == 0, result.output
    assert f"--require-signature {tmp_path / 'key.pem.pub'}" in result.stdout
    return tmp_path / "key.pem"


def test_the_walk_of_a_user(bundle: Path, key: Path) -> None:
    public = f"{key}.pub"
    early = call("validate", bundle, "--require-signature", public)
    assert isinstance(early.exception, network.SignatureError)
    assert "not signed" in str(early.exception)
    signed = call("sign", bundle, "--key", key)
    assert signed.stdout.startswith(f"signed {bundle}: ")
    assert signed.stderr == ""
    assert "as the owner of" in call("sign", bundle, "--check", public).stdout
    passed = call("validate", bundle, "--require-signature", public)
    assert "passed: 3 vectors" in passed.stdout
    assert call("run", bundle, "--require-signature", public, "--repeat", 1).exit_code == 0
    rewrite_manifest(bundle, threads=7)
    for words in (("run", "--require-signature"), ("validate", "--require-signature")):
        late = call(words[0], bundle, words[1], public)
        assert isinstance(late.exception, network.SignatureError)
    assert isinstance(call("sign", bundle, "--check", public).exception, SignatureError)


def test_over_rpc_too(bundle: Path, key: Path, host_board: str) -> None:
    options = ("--rpc", host_board, "--require-signature", f"{key}.pub")
    assert isinstance(call("validate", bundle, *options).exception, SignatureError)
    call("sign", bundle, "--key", key)
    assert "passed" in call("validate", bundle, *options).stdout


def test_json_is_one_object(bundle: Path, tmp_path: Path) -> None:
    pair = json.loads(call("sign", "--new-key", tmp_path / "k", "--json").stdout)
    signed = json.loads(call("sign", bundle, "--key", pair["private"], "--json").stdout)
    assert signed["fingerprint"] == pair["fingerprint"]
    checked = json.loads(call("sign", bundle, "--check", pair["public"], "--json").stdout)
    assert checked["files"] == signed["files"]


def test_a_key_that_others_may_read_is_noted(bundle: Path, key: Path) -> None:
    key.chmod(0o644)
    assert f"chmod 600 {key}" in call("sign", bundle, "--key", key).stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "give a BUNDLE"),
        (("BUNDLE",), "--new-key FILE` makes one"),
        (("BUNDLE", "--new-key", "k"), "give it alone"),
        (("BUNDLE", "--key", "k", "--check", "p"), "do not go together"),
    ],
)
def test_words_that_do_not_go_together(words: tuple[str, ...], text: str) -> None:
    result = call("sign", *words)
    assert result.exit_code == 2
    assert text in result.stderr
