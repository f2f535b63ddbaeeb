"""What a process in the sandbox may do, enforced by the kernel as far as it can, then by hooks of the interpreter.

Limits on what is used; Landlock (Linux 5.13 on): files are read in a few folders and written in one; seccomp: the calls
of `seccomp` alone. The hooks hold the same lines for Python code where the kernel cannot; native code gets past them.
A forbidden action raises PermissionError in the program, like any other error.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmtrain.rewards.inside import seccomp

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same everywhere
LANDLOCK_VERSION, LANDLOCK_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
# All rights on files that each version knows: 2 links across folders, 3 truncates, 5 controls devices.
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
SCOPED_FROM, SCOPES = 6, 0b11  # from version 6 on: no abstract socket and no signal to outside

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MOST_NEW_FILES = 256  # files, folders and links that a program makes, as its hooks count them
# Events of the interpreter (its table of audit events) on files -> the places of paths among their arguments.
CHANGE_EVENTS = {
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (0, 1),
    "os.truncate": (0,),
    "sqlite3.connect": (0,),
}
READ_EVENTS = {"os.listdir": (0,), "os.scandir": (0,), "os.chdir": (0,)}
REFUSED_EVENTS = (
    "cpython.remote_debugger",
    "ctypes.",
    "fcntl.",
    "ftplib.",
    "os.chflags",
    "os.chmod",
    "os.chown",
    "os.exec",
    "os.fork",
    "os.getxattr",
    "os.kill",
    "os.listxattr",
    "os.lockf",
    "os.posix_spawn",
    "os.removexattr",
    "os.setxattr",
    "os.spawn",
    "os.startfile",
    "os.system",
    "os.utime",
    "pty.",
    "resource.",
    "signal.pthread_kill",
    "socket.",
    "subprocess.",
    "syslog.",
    "webbrowser.",
)
REFUSED_MODULES = ("ctypes", "_ctypes")
IN_MEMORY = (":memory:", b":memory:")


def put_up(limits: Mapping[str, int], folder: str, readable: Sequence[str], *, hooks: bool = True) -> list[str]:
    """Shut this process in: it writes in a folder, and reads there and in others; the names of the walls that hold.

    `limits`: seconds, memory_bytes, file_bytes. Without `hooks`, what the kernel refuses to native code can be tried.
    """
    for kind, amount in (
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (amount, amount))
    walls = ["limits"]
    if sys.platform == "linux":
        walls += _kernel_walls(folder, readable)
    if hooks:
        _forget_ctypes()
        sys.addaudithook(_hook(folder, readable))
        walls.append("hooks")
    return walls


def _kernel_walls(folder: str, readable: Sequence[str]) -> list[str]:
    import ctypes  # forgotten before the program starts: with it, native code is within reach

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    libc.syscall.restype = ctypes.c_long
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # dies with the training run that started it
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return []
    walls = []
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version >= 1 and _landlock(libc, version, folder, readable):
        walls.append("landlock")
    if _seccomp(libc):
        walls.append("seccomp")
    return walls


def _landlock(libc: Any, version: int, folder: str, readable: Sequence[str]) -> bool:
    """Refuse files outside a folder, but for reading in others; whether the kernel does."""
    import ctypes

    handled = RIGHTS[min(version, max(RIGHTS))]
    scoped = SCOPES if version >= SCOPED_FROM else 0
    rights = struct.pack("=QQQ", handled, 0, scoped)
    rules = libc.syscall(LANDLOCK_CREATE, rights, ctypes.c_size_t(24 if scoped else 8), 0)
    if rules < 0:
        return False
    reads, to_file = READ_FILE | READ_DIR, READ_FILE | WRITE_FILE | (TRUNCATE & handled)
    allowed = [(folder, handled & ~EXECUTE), (os.devnull, to_file), *((path, reads) for path in readable)]
    for path, given in allowed:
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # is not there, so cannot be read either
            continue
        rights_here = given if os.path.isdir(path) else given & ~READ_DIR
        libc.syscall(LANDLOCK_ADD, rules, LANDLOCK_PATH_BENEATH, struct.pack("=Qi", rights_here, beneath), 0)
        os.close(beneath)
    restricted: bool = libc.syscall(LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return restricted


def _seccomp(libc: Any) -> bool:
    """Refuse all calls but those of `seccomp`; whether the kernel does."""
    import ctypes

    steps = seccomp.program(os.uname().machine)
    if steps is None:
        return False
    held = ctypes.create_string_buffer(steps)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    given = Program(len(steps) // 8, ctypes.cast(held, ctypes.c_void_p))
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0) == 0)


def _forget_ctypes() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in REFUSED_MODULES]:
        del sys.modules[name]


def _hook(folder: str, readable: Sequence[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """The interpreter's own wall; it cannot be taken down again."""
    realpath, fsdecode, separator = os.path.realpath, os.fsdecode, os.sep  # as they are now, not as a program sets them
    writable_roots = tuple(realpath(path) for path in (folder, os.devnull))
    readable_roots = (*writable_roots, *(realpath(path) for path in readable))
    num_made = 0

    def is_inside(path: Any, roots: tuple[str, ...]) -> bool:
        if path is None:
            path = "."
        if isinstance(path, int) or path in IN_MEMORY:  # opened before, and checked then
            return True
        real = realpath(fsdecode(path))
        return any((real + separator).startswith(root.rstrip(separator) + separator) for root in roots)

    def made() -> bool:
        nonlocal num_made
        num_made += 1
        return num_made <= MOST_NEW_FILES

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & WRITE_FLAGS:
                if is_inside(path, readable_roots):
                    return
            elif is_inside(path, writable_roots) and made():
                return
        elif event in CHANGE_EVENTS:
            if all(is_inside(arguments[place], writable_roots) for place in CHANGE_EVENTS[event]) and made():
                return
        elif event in READ_EVENTS:
            if all(is_inside(arguments[place], readable_roots) for place in READ_EVENTS[event]):
                return
        elif event == "import":
            if arguments[0] not in REFUSED_MODULES:
                return
        elif not event.startswith(REFUSED_EVENTS):
            return
        raise PermissionError(f"{event} is refused in the sandbox")

    return hook
