# SPDX-License-Identifier: Apache-2.0
"""A TVM RPC server that outlives its clients: the program behind `tvmattend device`.

It speaks the protocol of `python -m tvm.exec.rpc_server`, one session at a time, each in a forked
child with its own directory. It exists because of what that server (0.27.0.post1) does:

- its accept loop is a thread that ends with the first session whose process crashes, and with the
  first client whose key is not UTF-8; the process stays, accepts, and never answers again;
- a client that connects and says nothing holds it for ever, and so does one that vanished;
- it starts itself again through `PopenWorker`, which cannot execute under qemu-user.

The package runs on another Python too (the emulated board's), under the name `serving`. So it
imports the standard library, `tvm_ffi` and its own files, the latter relatively;
`libtvm_runtime.so` holds the rest of the protocol. That also makes a board's server small: no
compiler library, no torch, 1.2 s to start under qemu.
"""
