# SPDX-License-Identifier: Apache-2.0
"""A model's name -> the name of its library, its headers, and the beginning of all its C names.

`my-net.v2` becomes `my_net_v2`. What a program has already gets `net_` in front: a library called
`libm.so` is found in place of the system's, a header called `string.h` in place of the C library's,
`namespace class` does not compile, and `X_OK` is a macro of <unistd.h>, which is not 0.
"""

import re

from tvmattend.errors import InputError

# Of C and of C++, which cannot be the name of a namespace.
_KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t
    char8_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires restrict
    return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename typeof union unsigned using virtual void
    volatile wchar_t while xor xor_eq
"""
# `<name>.h` is on every include path.
_HEADERS = """
    alloca assert byteswap complex ctype dirent dlfcn elf endian err errno error fcntl features fenv
    float fnmatch fts ftw getopt glob grp iconv inttypes iso646 langinfo libgen limits link locale
    malloc math memory mntent netdb paths poll pthread pty pwd regex sched search semaphore setjmp
    shadow signal spawn stab stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib
    stdnoreturn string strings syscall syslog termios tgmath threads time uchar ucontext unistd
    utime utmp values wait wchar wctype wordexp
"""
# `-l<name>` is the system's; a library of one letter is covered by its length.
_LIBRARIES = "anl atomic crypt dl gcc gcc_s gomp nsl resolv rt stdc ubsan util"
# The C library has `<name>_create` or `<name>_destroy`.
_OBJECTS = "argz clnt cnd epoll memfd mtx pthread sem svc thrd timer timerfd tss"
# What else is declared everywhere in C++: functions, objects and macros of the C library.
_GLOBALS = """
    abort abs accept access alarm atoi bind bsearch calloc ceil chdir chmod clock clone close
    connect cos creat daemon div dup environ exit exp fabs floor fma fmod fopen fork free gamma
    gets index ioctl kill linux listen log longjmp main memchr memcmp memcpy memmove memset mmap
    modf mount nan nice open optarg pause perror pipe pow printf ptrace putenv puts qsort raise rand
    random read realloc recv remainder remove rename rewind rindex rint round scanf select send
    shutdown sin sleep socket sqrt srand stat std stderr stdin stdout strcmp strcpy strdup strerror
    strlen swab symlink sync system tan tee times toupper trunc truncate umask uname unix unlink
    usleep vfork warn write j0 j1 jn y0 y1 yn
    BUFSIZ EOF NULL
"""
_TAKEN = frozenset(f"{_KEYWORDS} {_HEADERS} {_LIBRARIES} {_OBJECTS} {_GLOBALS}".split())


def prefix_of(model: str) -> str:
    """C identifier for a model's name, of which nothing in a C or C++ program is the namesake."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", model).strip("_")  # C++ has reserved what has `__` in it
    # Macros of the C library are built of one letter: F_OK, R_OK, W_OK, X_OK.
    sound = len(name) > 1 and name[0].isalpha() and name not in _TAKEN
    return name if sound else f"net_{name}".rstrip("_")


def check_prefix(name: str) -> None:
    """Refuse a name that a user gave and that C or C++ cannot use as it is.

    Raises:
        InputError: It would have to be changed.
    """
    usable = prefix_of(name)
    if usable != name:
        raise InputError(
            f"`{name}` cannot be the name of a library and begin its C names",
            f"give e.g. --name {usable}",
        )
