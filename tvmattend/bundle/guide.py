# SPDX-License-Identifier: Apache-2.0
"""README.md of a bundle: what someone on the device has to know, and nothing else."""

from collections.abc import Sequence

from tvmattend.bundle.manifest import Manifest
from tvmattend.runtime.network import TensorSpec

_TEXT = """\
# {model} for {cpu}

A compiled network, with its weights inside `model.so`. Made by tvmattend {tvmattend} with
Apache TVM {tvm} for {target}.

## On the device
Linux on {arch} with glibc 2.28 or later (Debian 10, Raspberry Pi OS of 64 bits), Python 3.9 or
later, and two packages (where the system's own Python refuses them: in a virtual environment).
TVM itself is in `lib/`.

    python3 -m pip install numpy apache-tvm-ffi=={ffi}

Copy this directory there and go into it.

    python3 tvmattend_runtime.py             # tests itself against the reference outputs
{photo}
Never copy over a directory that a program has loaded, which would crash: copy beside it and rename.

## In an application

{application}## Licences
`lib/` is Apache TVM and its ffi, unchanged from their wheels, under the Apache License 2.0 (texts
in `lib/licenses/`). `tvmattend_runtime.py` is under the Apache License 2.0 as well. The weights
have the licence of where they come from: {weights}.
"""

_STANDALONE = """\
# {model} for {cpu}

A compiled network as a C library, `{library}`, with its weights inside. It needs the C library
of the device ({libc}) and nothing else. Made by tvmattend {tvmattend} for
{target}.

## In C and C++
`{prefix}.h` is the interface, `{prefix}.hpp` the same for C++17:

    cc app.c {library} -Wl,-rpath,'$ORIGIN'
    cc app.c lib{prefix}.a -lm -lpthread             # or statically

All names begin with `{prefix}_`, so that two networks fit into one program. Buffers start at
multiples of 64 bytes and are used in place; a call that fails returns a status, and
`{prefix}_last_error()` says why. On a CPU without the instructions of {cpu}, for which C has no
check, a program ends with SIGILL.

## In Python
Python 3.9 or later with numpy. Copy this directory to the device, go into it, and let it test
itself:

    python3 tvmattend_runtime.py
{photo}
Never copy over a directory that a program has loaded, which would crash: copy beside it and rename.

In an application:

{application}## Licences
The library, its headers and the Python files are under the Apache License 2.0. The weights have the
licence of where they come from: {weights}.
"""

_APPLICATION = """\
    import sys
    sys.path.insert(0, "path/of/this/directory")
    from tvmattend_runtime import load

    net = load("path/of/this/directory")     # threads=N for another number than {threads}
    y = net(x)                               # numpy arrays
{classify}    net.self_test()                          # relative errors, at most {tolerance:.0e}

| | name | type | shape | layout |
|---|---|---|---|---|
{tensors}

`load` checks the SHA-256 of every file first; `manifest.json` lists them, with all that is known
about how the library came about. Any thread may call `net`; calls wait for one another. An error
says in its `hint` what to do.
{signature}
"""

# The wrapper of a bundle cannot vouch for that bundle: whoever changes one changes the other.
_SIGNATURE = """
To load nothing but what the owner of a key has signed: copy `tvmattend_*.py` of a bundle that you
trust into the application (those of an unchecked one are its maker's), install `cryptography`, and
there `load("path/of/this/directory", require_signature="key.pub")`.
"""


def device_guide(manifest: Manifest) -> str:
    """Write the README of a bundle."""
    image = manifest.preprocessing is not None
    text = _STANDALONE if manifest.format == "standalone" else _TEXT
    show = (
        "    python3 -m pip install pillow            # to open photographs\n"
        "    python3 tvmattend_runtime.py photo.jpg   # names what the photograph shows\n"
    )
    call = '    net.classify("photo.jpg", top=5)         # with Pillow; or a uint8 array of RGB\n'
    application = _APPLICATION.format(
        signature=_SIGNATURE,
        classify=call if image else "",
        threads=manifest.threads,
        tolerance=manifest.tolerance,
        tensors="\n".join([*_rows("input", manifest.inputs), *_rows("output", manifest.outputs)]),
    )
    return text.format(
        application=application,
        library=manifest.library,
        libc="glibc 2.28 or later" if manifest.libc == "glibc" else manifest.libc,
        prefix=manifest.library.removeprefix("lib").removesuffix(".so"),
        model=manifest.model,
        cpu=manifest.target.cpu,
        target=manifest.target.describe(),
        arch=manifest.target.arch,
        tvmattend=manifest.versions.tvmattend,
        tvm=manifest.versions.tvm,
        ffi=manifest.versions.tvm_ffi,
        photo=show if image else "",
        weights=manifest.weights.source,
    )


def _rows(kind: str, specs: Sequence[TensorSpec]) -> list[str]:
    return [f"| {kind} | {s.name} | {s.dtype} | {list(s.shape)} | {s.layout} |" for s in specs]
