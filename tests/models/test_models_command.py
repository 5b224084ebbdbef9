# SPDX-License-Identifier: Apache-2.0
"""`tvmattend models`: the table, the JSON, and that it is quick."""

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

import tvmattend
from tvmattend.cli.main import cli
from tvmattend.models import REGISTRY


def test_the_table_names_every_network_with_its_counts() -> None:
    result = CliRunner().invoke(cli, ["models"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["name", "parameters", "MACs", "input", "classes", "note"]
    assert [line.split()[0] for line in lines[1:]] == list(REGISTRY)
    first = lines[1].split()
    assert first[:6] == ["attendnext", "3,924,704", "389.09", "M", "224x224", "1000"]
    assert all(line == line.rstrip() and len(line) <= 120 for line in lines)


def test_json_is_one_object_with_the_same_networks() -> None:
    result = CliRunner().invoke(cli, ["models", "--json"])
    models = json.loads(result.stdout)["models"]
    assert [model["name"] for model in models] == list(REGISTRY)
    assert models[0] == {
        "name": "attendnext",
        "parameters": 3924704,
        "macs": 389089580,
        "input_shape": [1, 3, 224, 224],
        "classes": 1000,
        "default": True,
        "note": REGISTRY["attendnext"].note,
    }
    assert sum(model["default"] for model in models) == 1


def test_it_starts_neither_torch_nor_tvm() -> None:
    code = (
        "import sys; from tvmattend.cli.models import command;"
        "command([], standalone_mode=False);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'tvm', 'numpy')))"
    )
    root = Path(tvmattend.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
