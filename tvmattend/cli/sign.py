# SPDX-License-Identifier: Apache-2.0
"""`tvmattend sign`: vouch for a bundle, or make the key to do it with."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ed25519 private key: PEM or OpenSSH.",
)
@click.option(
    "--new-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Make a key pair instead: FILE, to keep, and FILE.pub, for the devices.",
)
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    metavar="PUBKEY",
    help="Check the signature and every file instead; nothing is loaded.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path | None, key: Path | None, new_key: Path | None, check: Path | None, as_json: bool
) -> None:
    """Sign BUNDLE with an Ed25519 key, so that a device can require the signature.

    The signature covers manifest.json, and with it the SHA-256 of every file. To require it:
    `run`, `validate` and `profile` with --require-signature PUBKEY, or in Python
    `load(BUNDLE, require_signature=PUBKEY)`.
    """
    if new_key is not None:
        if (bundle, key, check) != (None, None, None):
            raise click.UsageError("--new-key makes a key and signs nothing: give it alone")
        _new_key(new_key, as_json)
    elif bundle is None:
        raise click.UsageError("give a BUNDLE and --key FILE, or --new-key FILE")
    elif check is not None:
        if key is not None:
            raise click.UsageError("--check and --key do not go together")
        _check(bundle, check, as_json)
    elif key is None:
        raise click.UsageError(
            "give the private key with --key FILE; `tvmattend sign --new-key FILE` makes one"
        )
    else:
        _sign(bundle, key, as_json)


def _new_key(path: Path, as_json: bool) -> None:
    from tvmattend.bundle.signing import create_key

    pair = create_key(path)
    if as_json:
        click.echo(json.dumps(pair.to_json()))
        return
    click.echo(f"private  {pair.private} (keep it: who has it can sign as you)")
    click.echo(f"public   {pair.public} (for devices: --require-signature {pair.public})")
    click.echo(f"key      {pair.fingerprint}")


def _sign(bundle: Path, key: Path, as_json: bool) -> None:
    from tvmattend.bundle.signing import open_to_others, sign_bundle

    signed = sign_bundle(bundle, key)
    if open_to_others(key):
        click.echo(f"note: others may read {key}: chmod 600 {key}", err=True)
    if as_json:
        click.echo(json.dumps(signed.to_json()))
    else:
        click.echo(f"signed {bundle}: {signed.files} files, by {signed.fingerprint}")


def _check(bundle: Path, key: Path, as_json: bool) -> None:
    from tvmattend.bundle import verify

    files = len(verify(bundle, require_signature=key).files) + 1
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "key": str(key), "files": files}))
    else:
        click.echo(f"{bundle}: {files} files, as the owner of {key} signed them")
