"""System calls that a program may use, as a seccomp filter in classic BPF; the kernel refuses all others.

The list is what computing, threads, and files need. Not on it: starting processes, signals, sockets, scheduling, locks,
modes, owners, times and attributes of files, the memory of others, mounts, kernel objects that outlive a process.
"""

from __future__ import annotations

import struct

ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # the second with the error number added
EPERM, ENOSYS = 1, 38
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # on 32-bit words and constants
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OTHER_NUMBERING = 0x40000000  # from here on x86-64's other numbering of the same calls (x32)
NEW_CALLS = 424  # the same on all architectures; a C library falls back from one that the kernel does not know
CLONE_THREAD = 0x00010000

# Numbers on (x86-64, ARM64).
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "close": (3, 57),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "open": (2, None),
    "openat": (257, 56),
    "creat": (85, None),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "getrandom": (318, 278),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "times": (100, 153),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "arch_prctl": (158, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "ftruncate": (77, 46),
    "truncate": (76, 45),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "link": (86, None),
    "linkat": (265, 37),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "umask": (95, 166),
    "getrlimit": (97, 163),
    "membarrier": (324, 283),
    "restart_syscall": (219, 128),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "fadvise64": (221, 223),
}

# Calls that are allowed with one of a few values of an argument: numbers, the argument's place, the values.
ALLOWED_WITH: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # duplicate, read and set flags; no locks, owners or signals
    "ioctl": ((16, 29), 1, (0x5401, 0x5421, 0x5451)),  # is it a terminal; do not block; close on exec
    "prctl": ((157, 167), 0, (15, 16, 0x53564D41)),  # names of threads and of memory
}
PRLIMIT, CLONE, CLONE3 = (302, 261), (56, 220), (435, 435)


def program(machine: str) -> bytes | None:
    """The filter for a machine, over (call number, architecture, ..., arguments from byte 16); None: not known here."""
    if machine not in ARCHITECTURES:
        return None
    column = list(ARCHITECTURES).index(machine)
    refuse, allow = _step(RETURN, REFUSE | EPERM), _step(RETURN, ALLOW)
    steps = [
        _step(LOAD, 4),
        _step(EQUAL, ARCHITECTURES[machine], 1, 0),
        refuse,  # a call in another architecture's numbering
        _step(LOAD, 0),
        _step(AT_LEAST, OTHER_NUMBERING, 0, 1),
        refuse,
    ]
    for numbers in ALLOWED.values():
        number = numbers[column]
        if number is not None:
            steps += _if_call(number, [allow])
    for pair, place, values in ALLOWED_WITH.values():
        tries = [part for value in values for part in (_step(EQUAL, value, 0, 1), allow)]
        steps += _if_call(pair[column], [_step(LOAD, _argument(place)), *tries, refuse])
    # A thread, not a process.
    steps += _if_call(CLONE[column], [_step(LOAD, _argument(0)), _step(ANY_BIT, CLONE_THREAD, 0, 1), allow, refuse])
    # Limits of this process may be read: process 0, and no new limit.
    zeros = [part for byte in (16, 32, 36) for part in (_step(LOAD, byte), _step(EQUAL, 0, 1, 0), refuse)]
    steps += _if_call(PRLIMIT[column], [*zeros, allow])
    steps += [_step(AT_LEAST, NEW_CALLS, 0, 1), _step(RETURN, REFUSE | ENOSYS), refuse]
    return b"".join(steps)


def _step(operation: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, constant)


def _argument(place: int) -> int:
    return 16 + 8 * place  # its lower half: both machines are little-endian


def _if_call(number: int, steps: list[bytes]) -> list[bytes]:
    """Steps for one call; each of their paths returns."""
    return [_step(EQUAL, number, 0, len(steps)), *steps]
