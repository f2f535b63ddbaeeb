"""The inside of `sandbox`: a script that needs only the standard library. Sets up walls, then runs a program's tests.

A job comes as JSON on standard input; {token, num_passed, walls} goes to the file descriptor that it names. A forbidden
action raises PermissionError in the program, like any other error.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_ALLOW, SECCOMP_ERRNO = 0x7FFF0000, 0x00050000
EPERM, ENOSYS = 1, 38
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF, on 32-bit words and constants
CLONE_THREAD = 0x00010000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEW_NUMBERS = 0x40000000  # from here on, x86-64's other numbering of the same calls (x32)

# Calls by number: (x86-64, ARM64). clone is refused for processes, allowed for threads.
CLONE, CLONE3 = (56, 220), (435, 435)
REFUSED_CALLS = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),  # opens sockets without the call
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "prlimit64": (302, 261),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
}

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same everywhere
LANDLOCK_VERSION, LANDLOCK_PATH_BENEATH = 1, 1
# Write to a file, remove and make anything; from version 2 on link across folders, from version 3 on truncate.
LANDLOCK_WRITES = {1: 0b1_1111_1111_0010, 2: 0b11_1111_1111_0010, 3: 0b111_1111_1111_0010}
LANDLOCK_TO_FILE = (1 << 1) | (1 << 14)

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events of the interpreter (its table of audit events) that change files -> the places of paths among their arguments.
PATH_EVENTS = {
    "os.chflags": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.removexattr": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.setxattr": (0,),
    "os.symlink": (0, 1),
    "os.truncate": (0,),
    "os.utime": (0,),
    "sqlite3.connect": (0,),
}
REFUSED_EVENTS = (
    "ctypes.",
    "ftplib.",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
    "resource.",
    "signal.pthread_kill",
    "socket.",
    "subprocess.",
    "syslog.",
    "webbrowser.",
)


def main() -> None:
    """Read the job, put up the walls, run it, write the verdict."""
    job = json.load(sys.stdin)
    walls = ["limits", *_kernel_walls(os.getcwd(), job), "hooks"]
    sys.addaudithook(_hook(os.getcwd()))
    num_passed = _num_passed(job["code"], job["tests"])
    os.write(job["verdict_fd"], json.dumps({"token": job["token"], "num_passed": num_passed, "walls": walls}).encode())
    os._exit(0)  # threads of the program are not waited for


def _num_passed(code: str, tests: list[str]) -> int:
    """The number of tests that pass after the code has run; 0 if the code fails."""
    names: dict[str, Any] = {"__name__": "solution"}
    passed = 0
    try:
        exec(compile(code, "<response>", "exec"), names)
    except BaseException:  # SystemExit too: a program that ends itself has passed nothing
        return 0
    for test in tests:
        try:
            exec(compile(test, "<test>", "exec"), names)
            passed += 1
        except BaseException:
            continue
    return passed


def _kernel_walls(folder: str, job: dict[str, Any]) -> list[str]:
    """Limits on what is used, then what else this kernel offers, by name."""
    for kind, amount in (
        (resource.RLIMIT_CPU, job["seconds"]),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (amount, amount))
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # dies with the training run that started it
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return []
    walls = []
    if _landlock(libc, folder):
        walls.append("landlock")
    if _seccomp(libc):
        walls.append("seccomp")
    return walls


def _landlock(libc: Any, folder: str) -> bool:
    """Refuse to change files outside a folder; whether the kernel does."""
    libc.syscall.restype = ctypes.c_long
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 1:
        return False
    handled = LANDLOCK_WRITES[min(version, max(LANDLOCK_WRITES))]
    rules = libc.syscall(LANDLOCK_CREATE, struct.pack("Q", handled), ctypes.c_size_t(8), 0)
    for path, allowed in ((folder, handled), (os.devnull, handled & LANDLOCK_TO_FILE)):
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        libc.syscall(LANDLOCK_ADD, rules, LANDLOCK_PATH_BENEATH, struct.pack("=Qi", allowed, beneath), 0)
        os.close(beneath)
    restricted: bool = libc.syscall(LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return restricted


def _seccomp(libc: Any) -> bool:
    """Refuse calls that start processes, reach the network or other processes; whether the kernel does."""
    if platform.machine() not in ARCHITECTURES:
        return False
    program = _filter(platform.machine())
    held = ctypes.create_string_buffer(program)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    given = Program(len(program) // 8, ctypes.cast(held, ctypes.c_void_p))
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0) == 0)


def _filter(machine: str) -> bytes:
    """The filter as classic BPF over (call number, architecture, ..., first argument from byte 16)."""
    column = list(ARCHITECTURES).index(machine)

    def step(operation: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", operation, if_true, if_false, constant)

    refuse = step(RETURN, SECCOMP_ERRNO | EPERM)
    steps = [
        step(LOAD, 4),
        step(EQUAL, ARCHITECTURES[machine], 1, 0),
        refuse,  # a call in another architecture's numbering
        step(LOAD, 0),
        step(AT_LEAST, NEW_NUMBERS, 0, 1),
        refuse,
        step(EQUAL, CLONE3[column], 0, 1),
        step(RETURN, SECCOMP_ERRNO | ENOSYS),  # its flags cannot be read here; libc falls back to clone
        step(EQUAL, CLONE[column], 0, 4),
        step(LOAD, 16),
        step(ANY_BIT, CLONE_THREAD, 0, 1),
        step(RETURN, SECCOMP_ALLOW),
        refuse,
    ]
    for numbers in REFUSED_CALLS.values():
        number = numbers[column]
        if number is not None:
            steps += [step(EQUAL, number, 0, 1), refuse]
    return b"".join([*steps, step(RETURN, SECCOMP_ALLOW)])


def _hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """The interpreter's own wall; it cannot be taken down again."""
    realpath, fsdecode, separator = os.path.realpath, os.fsdecode, os.sep  # as they are now, not as a program sets them
    inside = realpath(folder)
    allowed_files = (os.devnull,)

    def is_inside(path: Any) -> bool:
        if isinstance(path, int):  # opened before, and checked then
            return True
        real = realpath(fsdecode(path))
        return real in allowed_files or (real + separator).startswith(inside + separator)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & WRITE_FLAGS or is_inside(path):
                return
        elif event in PATH_EVENTS:
            if all(is_inside(arguments[place]) for place in PATH_EVENTS[event]):
                return
        elif not event.startswith(REFUSED_EVENTS):
            return
        raise PermissionError(f"{event} is refused in the sandbox")

    return hook


if __name__ == "__main__":
    main()
