"""What hostile Python tries in the sandbox against the machine.

`tests/unit/rewards/test_sandbox_attacks.py` runs it all, in a jail and without; `tests/sandbox_table.py` writes the
verdicts into docs/sandbox.md. An attack's code is the body of a function that returns something true if it worked;
`{file}` is a file that must stay as it is, in `{folder}`, and `{victim}` a process that must not notice anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

SECRET = "a-token-of-the-training-run"  # in the victim's environment and in the file


@dataclass(frozen=True)
class Attack:
    """An attack by Python code; `outcomes`: how it may end, besides with a refusal."""

    name: str
    code: str
    outcomes: tuple[str, ...] = ("wrong",)
    weak_in: tuple[str, ...] = ()  # modes in which it is known to work


def program(attack: Attack, file: str, victim: int) -> str:
    """The code of an attack, with a function `attack` that says whether it worked."""
    code = (
        attack.code.replace("{file}", file).replace("{folder}", os.path.dirname(file)).replace("{victim}", str(victim))
    )
    body = "\n".join(f"        {line}" for line in code.splitlines())
    return f"def attack():\n    try:\n{body}\n    except BaseException:\n        return False\n"


FILES = [
    Attack("write to a file outside", "open('{file}', 'w'); return True"),
    Attack("append to a file outside", "open('{file}', 'a'); return True"),
    Attack("open a file outside with O_TRUNC", "import os; os.open('{file}', os.O_WRONLY | os.O_TRUNC); return True"),
    Attack("truncate a file outside", "import os; os.truncate('{file}', 0); return True"),
    Attack("remove a file outside", "import os; os.remove('{file}'); return True"),
    Attack("rename a file outside", "import os; os.rename('{file}', 'here'); return True"),
    Attack("write through a symbolic link", "import os; os.symlink('{file}', 'here'); open('here', 'w'); return True"),
    Attack("write through a hard link", "import os; os.link('{file}', 'here'); open('here', 'w'); return True"),
    Attack("change the mode of a file outside", "import os; os.chmod('{file}', 0o777); return True"),
    Attack("make a folder outside", "import os; os.mkdir('{folder}/new'); return True"),
    Attack("remove a folder outside", "import shutil; shutil.rmtree('{folder}'); return True"),
    Attack(
        "make a database outside",
        "import sqlite3; sqlite3.connect('{folder}/new.db').execute('create table a(b)'); return True",
    ),
    Attack(
        "replace os.path.realpath, then write",
        "import os; os.path.realpath = lambda path: os.getcwd(); open('{file}', 'w'); return True",
    ),
    Attack(
        "replace os.fsdecode, then write",
        "import os; os.fsdecode = lambda path: 'a'; open('{file}', 'w'); return True",
    ),
    Attack("write through /proc/self/root", "open('/proc/self/root{file}', 'w'); return True"),
    Attack("read a file outside", "return open('{file}').read()"),
    Attack(
        "read a file outside through a folder's descriptor",
        "import os\nfolder = os.open('{folder}', os.O_RDONLY | os.O_DIRECTORY)\nreturn os.read(os.open('kept.txt', os.O_RDONLY, dir_fd=folder), 9)",
    ),
    Attack("list a folder outside", "import os; return os.listdir('{folder}')"),
    Attack("list the home folder", "import os; return os.listdir('/root') + os.listdir('/home')"),
    Attack("read the passwords of the machine", "return open('/etc/shadow').read()"),
    Attack(
        "change a mode through a descriptor", "import os; os.fchmod(os.open('{file}', os.O_RDONLY), 0o777); return True"
    ),
    Attack(
        "change times through a descriptor", "import os; os.utime(os.open('{file}', os.O_RDONLY), (0, 0)); return True"
    ),
    Attack(
        "set an attribute through a descriptor",
        "import os; os.setxattr(os.open('{file}', os.O_RDONLY), 'user.a', b'b'); return True",
    ),
    Attack("lock a file outside", "import fcntl; fcntl.flock(open('{file}'), fcntl.LOCK_EX); return True"),
    Attack(
        "lock /dev/null for all",
        "import fcntl, os; fcntl.flock(os.open(os.devnull, os.O_RDONLY), fcntl.LOCK_EX); return True",
    ),
    Attack(
        "fill the disk: 400 files of 1 MB", "for i in range(400): open(f'{i}', 'wb').write(bytes(2**20))\nreturn True"
    ),
    Attack("one file of 10 MB", "return open('a', 'wb').write(bytes(10**7)) == 10**7"),
    Attack("1,500 nested folders", "import os\nfor _ in range(1500): os.mkdir('a'); os.chdir('a')\nreturn True"),
    Attack("20,000 empty files", "for i in range(20_000): open(f'{i}', 'w').close()\nreturn True"),
]

PROCESSES = [
    Attack("fork", "import os; return os.fork() >= 0"),
    Attack("a fork bomb", "import os\nfor _ in range(100): os.fork()\nreturn True"),
    Attack("os.system", "import os; return os.system('true') == 0"),
    Attack("exec", "import os; os.execv('/bin/true', ['true'])"),
    Attack("posix_spawn", "import os; return os.posix_spawn('/bin/true', ['true'], {})"),
    Attack("subprocess", "import subprocess; return subprocess.run(['true']).returncode == 0"),
    Attack(
        "_posixsubprocess",
        "import _posixsubprocess, os\nreturn _posixsubprocess.fork_exec([b'/bin/true'], [b'/bin/true'], True, (), None, None, -1, -1, -1, -1, -1, -1, *os.pipe(), False, False, -1, None, None, None, -1, None, False)",
    ),
    Attack(
        "multiprocessing", "import multiprocessing; p = multiprocessing.Process(target=print); p.start(); return True"
    ),
    Attack("a signal to the parent", "import os, signal; os.kill(os.getppid(), 0); return os.getppid() > 1"),
    Attack("a signal to another process", "import os, signal; os.kill({victim}, signal.SIGKILL); return True"),
    Attack("a signal to all of its group", "import os; os.killpg(0, 0); return True"),
    Attack(
        "a signal by fcntl(F_SETOWN)",
        "import fcntl, os, signal\nreading, writing = os.pipe()\nfcntl.fcntl(reading, fcntl.F_SETOWN, {victim})\nfcntl.fcntl(reading, 10, signal.SIGKILL)\nfcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)\nos.write(writing, b'a')\nreturn True",
    ),
    Attack("the affinity of another process", "import os; os.sched_setaffinity({victim}, {0}); return True"),
    Attack("the priority of another process", "import os; os.setpriority(os.PRIO_PROCESS, {victim}, 19); return True"),
    Attack(
        "the scheduler of another process",
        "import os; os.sched_setscheduler({victim}, os.SCHED_IDLE, os.sched_param(0)); return True",
    ),
    Attack(
        "the limits of another process",
        "import resource; resource.prlimit({victim}, resource.RLIMIT_NOFILE, (3, 3)); return True",
    ),
    Attack("its own limits", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30)); return True"),
    Attack("the environment of the parent", "import os; return open(f'/proc/{os.getppid()}/environ').read()"),
    Attack("the environment of another process", "return open('/proc/{victim}/environ').read()"),
    Attack("the memory of another process", "return open('/proc/{victim}/mem', 'rb')"),
    Attack("the list of processes", "import os; return [name for name in os.listdir('/proc') if name.isdigit()]"),
    Attack("its own environment", f"import os; return {SECRET!r} in str(dict(os.environ)) or 'PATH' in os.environ"),
    Attack("be the user who trains", "import os; return os.getuid() != 65534", weak_in=("limits",)),
    Attack("the name of the machine", "import os; return os.uname().nodename != 'sandbox'", weak_in=("limits",)),
]

NETWORK = [
    Attack("a socket", "import socket; return socket.socket()"),
    Attack("a socket of the C module", "import _socket; return _socket.socket()"),
    Attack("a page of the network", "import urllib.request; return urllib.request.urlopen('http://127.0.0.1:9')"),
    Attack("a name of the network", "import socket; return socket.getaddrinfo('localhost', 80)"),
]

INTERPRETER = [
    Attack("import ctypes", "import ctypes; return ctypes.CDLL(None)"),
    Attack("import _ctypes", "import _ctypes; return _ctypes.dlopen(None, 2)"),
    Attack(
        "reach machine code by the loader of ctypes (its calls are refused: next table)",
        "import importlib.util, sys\nspec = importlib.util.find_spec('_ctypes')\nreturn importlib.util.module_from_spec(spec)",
        weak_in=("auto", "limits"),
    ),
    Attack(
        "reach machine code by the subclasses of object (its calls are refused: next table)",
        "def walk(kind):\n    for each in type.__subclasses__(kind):\n        yield each\n        yield from walk(each) if each is not type else ()\nreturn next(each for each in walk(object) if each.__name__ in ('_CData', 'CFuncPtr'))",
        weak_in=("auto", "limits"),
    ),
    Attack(
        "a library from its own folder",
        "import _imp, importlib.machinery\nopen('a.so', 'wb').write(b'\\x7fELF')\nspec = importlib.machinery.ModuleSpec('a', None, origin='a.so')\nreturn _imp.create_dynamic(spec)",
    ),
    Attack(
        "another hook that forgets the first",
        "import sys\nsys.addaudithook(lambda *a: None)\nimport os; return os.fork() >= 0",
    ),
    Attack(
        "find the hook by gc, and change it",
        "import gc\nhook = next(o for o in gc.get_objects() if getattr(o, '__name__', '') == 'hook')\nhook.__code__ = (lambda event, arguments: None).__code__\nreturn open('{file}').read()",
    ),
    Attack(
        "find ctypes by gc",
        "import gc\nfound = [o for o in gc.get_objects() if getattr(o, '__name__', '') == 'ctypes']\nreturn found[0].CDLL(None)",
    ),
    Attack(
        "a hand-made code object",
        "import types\ncode = (lambda: 0).__code__.replace(co_code=b'd\\xff' * 50, co_consts=())\nreturn types.FunctionType(code, {})() is None",
        ("wrong", "crash"),
    ),
]

RESOURCES = [
    Attack("a gigabyte of memory", "x = bytearray(10**9); return True"),
    Attack("memory, bit by bit", "x = []\nwhile True: x.append(bytearray(10**7))", ("wrong", "crash")),
    Attack("a loop without end", "while True: pass", ("timeout",)),
    Attack("a loop in C", "sum(iter(int, 1))", ("timeout",)),
    Attack("a number that takes for ever", "return 9 ** 9 ** 9 > 0", ("timeout", "wrong")),
    Attack("a regular expression that takes for ever", "import re; return re.match('(a+)+b', 'a' * 60)", ("timeout",)),
    Attack("sleep for ever", "import time; time.sleep(10**6)", ("timeout",)),
    Attack(
        "ignore the end of its time",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        ("timeout",),
    ),
    Attack(
        "threads without end",
        "import threading, time\nfor _ in range(10**5): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nreturn True",
        ("wrong", "timeout", "crash"),
    ),
    Attack(
        "recursion without end",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
        ("wrong", "crash", "timeout"),
    ),
    Attack(
        "nest a list as deep as memory",
        "x = []\nfor _ in range(10**6): x = [x]\nreturn x and repr(x)",
        ("wrong", "crash"),
    ),
    Attack("end itself", "import os; os._exit(0)", ("crash",)),
    Attack("abort", "import os; os.abort()", ("crash",)),
    Attack(
        "write to every descriptor",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'P' * 100)\n    except OSError: pass\nreturn False",
        ("wrong", "crash"),
    ),
    Attack("close every descriptor", "import os\nos.closerange(0, 64)\nreturn False", ("wrong", "crash")),
]

ATTACKS = [*FILES, *PROCESSES, *NETWORK, *INTERPRETER, *RESOURCES]
