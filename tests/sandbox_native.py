"""System calls of machine code in the sandbox, which no hook of the interpreter sees: the kernel must refuse them."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class NativeCall:
    """A system call of machine code, which no hook of the interpreter sees: numbers on x86-64 and ARM64, arguments."""

    name: str
    numbers: tuple[int | None, int | None]
    arguments: str  # of Python, with `file` (a path), `fd` (the file, open for reading), `victim`, `buffer`

    @property
    def number(self) -> int | None:
        return self.numbers[0 if platform.machine() == "x86_64" else 1]


def native_program(call: NativeCall, file: str, victim: int) -> str:
    """The code of a native call: it worked unless the kernel refused it."""
    return f"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def attack():
    file, victim = {file.encode()!r}, {victim}
    buffer = ctypes.create_string_buffer(4096)
    fd = os.open(os.devnull, os.O_RDONLY)
    arguments = [part if isinstance(part, bytes | ctypes.Array) else ctypes.c_long(part) for part in ({call.arguments},)]
    result = libc.syscall(ctypes.c_long({call.number}), *arguments)
    error = ctypes.get_errno()
    os.close(fd)
    not_there = error == errno.ENOENT and not os.path.exists(file)  # in a jail
    return result >= 0 or not (not_there or error in (errno.EPERM, errno.EACCES, errno.ENOSYS))
"""


NATIVE_CALLS = [
    NativeCall("fork by clone", (56, 220), "17, 0, 0, 0, 0"),
    NativeCall("vfork", (58, None), "0"),
    NativeCall("clone3", (435, 435), "buffer, 88"),
    NativeCall("execve", (59, 221), "b'/bin/true', 0, 0"),
    NativeCall("execveat", (322, 281), "-100, b'/bin/true', 0, 0, 0"),
    NativeCall("kill", (62, 129), "victim, 9"),
    NativeCall("tkill", (200, 130), "victim, 9"),
    NativeCall("tgkill", (234, 131), "victim, victim, 9"),
    NativeCall("rt_sigqueueinfo", (129, 138), "victim, 9, buffer"),
    NativeCall("pidfd_open", (434, 434), "victim, 0"),
    NativeCall("pidfd_send_signal", (424, 424), "fd, 9, 0, 0"),
    NativeCall("fcntl(F_SETOWN)", (72, 25), "fd, 8, victim"),
    NativeCall("fcntl(F_SETSIG)", (72, 25), "fd, 10, 9"),
    NativeCall("fcntl(F_SETLK)", (72, 25), "fd, 6, buffer"),
    NativeCall("fcntl(F_SETLEASE)", (72, 25), "fd, 1024, 0"),
    NativeCall("fcntl(F_NOTIFY)", (72, 25), "fd, 1026, 1"),
    NativeCall("ioctl(FIOASYNC)", (16, 29), "fd, 0x5452, buffer"),
    NativeCall("ioctl(TIOCSTI)", (16, 29), "fd, 0x5412, buffer"),
    NativeCall("sched_setaffinity", (203, 122), "victim, 8, buffer"),
    NativeCall("sched_setscheduler", (144, 119), "victim, 5, buffer"),
    NativeCall("sched_setattr", (314, 274), "victim, buffer, 0"),
    NativeCall("setpriority", (141, 140), "0, victim, 19"),
    NativeCall("ioprio_set", (251, 30), "1, victim, 0x6000"),
    NativeCall("prlimit64 of another", (302, 261), "victim, 7, buffer, 0"),
    NativeCall("prlimit64 of its own", (302, 261), "0, 7, buffer, 0"),
    NativeCall("setrlimit", (160, 164), "1, buffer"),
    NativeCall("chmod", (90, None), "file, 0o777"),
    NativeCall("fchmod", (91, 52), "fd, 0o777"),
    NativeCall("fchmodat", (268, 53), "-100, file, 0o777"),
    NativeCall("fchmodat2", (452, 452), "-100, file, 0o777, 0"),
    NativeCall("fchownat", (260, 54), "-100, file, 1, 1, 0"),
    NativeCall("utimensat", (280, 88), "-100, file, buffer, 0"),
    NativeCall("setxattr", (188, 5), "file, b'user.a', b'b', 1, 0"),
    NativeCall("flock", (73, 32), "fd, 2"),
    NativeCall("open a file outside", (257, 56), "-100, file, 0"),
    NativeCall("write a file outside", (257, 56), "-100, file, 1"),
    NativeCall("openat2", (437, 437), "-100, file, buffer, 24"),
    NativeCall("open_by_handle_at", (304, 265), "fd, buffer, 0"),
    NativeCall("truncate", (76, 45), "file, 0"),
    NativeCall("unlinkat", (263, 35), "-100, file, 0"),
    NativeCall("mknodat", (259, 33), "-100, b'a', 0o20666, 0x103"),
    NativeCall("ptrace", (101, 117), "16, victim, 0, 0"),
    NativeCall("process_vm_readv", (310, 270), "victim, buffer, 1, buffer, 1, 0"),
    NativeCall("process_vm_writev", (311, 271), "victim, buffer, 1, buffer, 1, 0"),
    NativeCall("kcmp", (312, 272), "victim, victim, 0, 0, 0"),
    NativeCall("socket", (41, 198), "2, 1, 0"),
    NativeCall("socketpair", (53, 199), "1, 1, 0, buffer"),
    NativeCall("io_uring_setup", (425, 425), "8, buffer"),
    NativeCall("unshare", (272, 97), "0x10000000"),
    NativeCall("setns", (308, 268), "fd, 0"),
    NativeCall("mount", (165, 40), "b'none', b'/tmp', b'tmpfs', 0, 0"),
    NativeCall("umount2", (166, 39), "b'/tmp', 0"),
    NativeCall("chroot", (161, 51), "b'.'"),
    NativeCall("pivot_root", (155, 41), "b'.', b'.'"),
    NativeCall("shmget", (29, 194), "0, 4096, 0o1666"),
    NativeCall("msgget", (68, 186), "0, 0o1666"),
    NativeCall("semget", (64, 190), "0, 1, 0o1666"),
    NativeCall("mq_open", (240, 180), "b'a', 0o102, 0o666, 0"),
    NativeCall("memfd_create", (319, 279), "b'a', 0"),
    NativeCall("bpf", (321, 280), "0, buffer, 72"),
    NativeCall("perf_event_open", (298, 241), "buffer, 0, -1, -1, 0"),
    NativeCall("keyctl", (250, 219), "0, -3, 0"),
    NativeCall("add_key", (248, 217), "b'user', b'a', b'b', 1, -3"),
    NativeCall("userfaultfd", (323, 282), "1"),
    NativeCall("setuid", (105, 146), "0"),
    NativeCall("setsid", (112, 157), "0"),
    NativeCall("personality", (135, 92), "0x40000"),
    NativeCall("prctl(PR_SET_DUMPABLE)", (157, 167), "4, 1, 0, 0, 0"),
    NativeCall("prctl(PR_SET_PDEATHSIG)", (157, 167), "1, 0, 0, 0, 0"),
    NativeCall("seccomp", (317, 277), "1, 0, 0"),
    NativeCall("init_module", (175, 105), "buffer, 4096, b''"),
    NativeCall("reboot", (169, 142), "0, 0, 0, 0"),
    NativeCall("sethostname", (170, 161), "b'a', 1"),
    NativeCall("another numbering (x32)", (0x40000000 + 62, None), "victim, 9"),
]
