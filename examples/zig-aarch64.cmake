# SPDX-License-Identifier: Apache-2.0
# Programs for any aarch64 Linux, built with the Python package `ziglang`, without a cross compiler:
#
#     cmake -S examples -B build -DBUNDLE=DIRECTORY -DSTATIC=ON \
#           -DCMAKE_TOOLCHAIN_FILE=zig-aarch64.cmake
#
# The bundle is one of `tvmattend build --format standalone --libc musl`; for one of glibc, give
# -DLIBC=glibc and no -DSTATIC=ON.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(PYTHON python3 CACHE STRING "A Python that has the package ziglang")
set(LIBC musl CACHE STRING "C library of the board: musl or glibc")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES PYTHON LIBC)
if(LIBC STREQUAL "musl")
  set(TRIPLE aarch64-linux-musl)
elseif(LIBC STREQUAL "glibc")
  set(TRIPLE aarch64-linux-gnu.2.28)
else()
  message(FATAL_ERROR "-DLIBC=${LIBC} is neither musl nor glibc")
endif()
find_program(PYTHON_PROGRAM "${PYTHON}" REQUIRED)
set(CMAKE_C_COMPILER "${PYTHON_PROGRAM}" -m ziglang cc -target ${TRIPLE})
set(CMAKE_CXX_COMPILER "${PYTHON_PROGRAM}" -m ziglang c++ -target ${TRIPLE})
