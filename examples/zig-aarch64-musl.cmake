# SPDX-License-Identifier: Apache-2.0
# Static programs for any aarch64 Linux, built with the Python package `ziglang`:
#
#     cmake -S examples -B build -DBUNDLE=DIRECTORY -DSTATIC=ON \
#           -DCMAKE_TOOLCHAIN_FILE=zig-aarch64-musl.cmake
#
# The bundle is one of `tvmattend build --format standalone --libc musl`.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(PYTHON python3 CACHE STRING "A Python that has the package ziglang")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES PYTHON)
find_program(PYTHON_PROGRAM "${PYTHON}" REQUIRED)
set(CMAKE_C_COMPILER "${PYTHON_PROGRAM}" -m ziglang cc -target aarch64-linux-musl)
set(CMAKE_CXX_COMPILER "${PYTHON_PROGRAM}" -m ziglang c++ -target aarch64-linux-musl)
