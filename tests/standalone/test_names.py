# SPDX-License-Identifier: Apache-2.0
"""Whatever a model is called, its library, its headers and its C names are in nobody's way."""

import re
from pathlib import Path

import numpy as np
import pytest
from c_networks import Built, run

from tvmattend.runtime.standalone import Library
from tvmattend.standalone import emit
from tvmattend.standalone.names import prefix_of
from tvmattend.standalone.source import Description, cpp_header


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        ("attendnext", "attendnext"),
        ("my-net.v2", "my_net_v2"),
        ("package_module_factory", "package_module_factory"),
        ("a--b__c", "a_b_c"),
        ("2nd", "net_2nd"),
        ("_private_", "net_private"),
        ("é", "net"),
        ("", "net"),
        ("x", "net_x"),  # X_OK of <unistd.h>
        ("class", "net_class"),
        ("std", "net_std"),
        ("string", "net_string"),  # <string.h>
        ("pthread", "net_pthread"),  # pthread_create
        ("m", "net_m"),  # libm.so
        ("errno", "net_errno"),
        ("memset", "net_memset"),
    ],
)
def test_a_prefix_is_an_identifier_of_its_own(model: str, prefix: str) -> None:
    assert prefix_of(model) == prefix
    assert prefix_of(prefix) == prefix, "a name that was made is left alone"


def test_no_prefix_is_part_of_the_c_library(gcc: str, tmp_path: Path) -> None:
    """Of each name in the C library whose ending the interface has, the beginning is taken."""
    endings = "create|destroy|run|profile|threads|get_info|input|output|step_name|last_error"
    (library,) = re.findall(
        r"libc\.so\.6 => (\S+)", run(["ldd", _program(gcc, tmp_path, "int main(){return 0;}")])
    )
    names = re.findall(rf" (\w+)_(?:{endings})\b", run(["nm", "-D", "--defined-only", library]))
    assert "pthread" in names
    plain = {name for name in names if "_" not in name and not name.startswith(("xdr", "auth"))}
    # Sun RPC's, long gone from the headers, are the rest.
    assert {name for name in plain if prefix_of(name) == name} <= {
        "clntraw", "clnttcp", "clntudp", "clntunix", "svcfd", "svcraw", "svctcp", "svcudp",
        "svcunix", "svcunixfd",
    }  # fmt: skip


def test_the_namespace_stands_beside_every_header(gcc: str, tmp_path: Path) -> None:
    """Behind the headers of C, POSIX and C++, no name is theirs."""
    headers = ["cmath", "cstdio", "cstdlib", "cstring", "ctime", "csignal", "thread", "vector",
               "unistd.h", "fcntl.h", "sys/socket.h", "sys/stat.h", "sys/wait.h", "strings.h",
               "search.h", "poll.h", "sys/mman.h", "err.h", "error.h"]  # fmt: skip
    models = (
        "index time log signal select class template linux unix errno stdin NULL EOF main memset "
        "read y0 encoder backbone net"
    )
    lines = [f"#include <{name}>" for name in headers]
    for model in {prefix_of(name) for name in models.split()}:
        about = Description(model, model, "any", 1, "0" * 64, [], [])
        namespace = re.search(r"^namespace .*$", cpp_header(about), re.MULTILINE)
        assert namespace
        lines += [f"{namespace[0]} int sound; }}"]
    _program(gcc, tmp_path, "\n".join([*lines, "int main() { return 0; }"]), "-std=c++17")


@pytest.mark.parametrize("name", ["x", "rpc", "kernels", "weights", "program", "string"])
def test_a_network_of_a_name_that_is_in_use_works(tiny: Built, name: str, tmp_path: Path) -> None:
    files = emit(tiny.scheduled, tiny.imported, tiny.target, tmp_path, name=name)
    ((x,),) = tiny.imported.sample_inputs(1)
    found = Library(files.shared, 2).run([x])[0]
    assert np.array_equal(found, Library(tiny.files.shared, 1).run([x])[0])


def _program(gcc: str, place: Path, text: str, *flags: str) -> Path:
    source = place / "program.cpp"
    source.write_text(text)
    run([gcc, *flags, "-Wall", "-Werror", source, "-o", place / "program", "-lstdc++"])
    return place / "program"
