"""The one place that decides in which jail code runs: bubblewrap's, or none.

In the jail a program sees Python and its libraries, read-only, and a folder in memory of a fixed size. It has no other
file, no network, no process but its own, no environment, and is nobody. Without a jail only the walls of
`inside/walls.py` hold, inside the program's own process; docs/sandbox.md compares the two.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from llmtrain.config.rl import SandboxMode

INSIDE = Path(__file__).with_name("inside")
NOBODY = "65534"
TRIAL_SECONDS = 20
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin")
LINKER_CACHE = "/etc/ld.so.cache"
START = "import sys; sys.path.append({root!r}); from llmtrain.rewards.inside.main import main; sys.path.pop(); main()"


@dataclass(frozen=True)
class Jail:
    """How a Python process is started, and what it may read."""

    kind: Literal["bubblewrap", "none"]
    description: str  # for the log
    program: str = ""  # the path of bwrap

    def command(self, folder_bytes: int, info_fd: int | None = None) -> list[str]:
        """The command of a process that runs `inside/main.py`; its folder holds at most `folder_bytes`.

        In a jail the number of the process goes to the file descriptor `info_fd`, as JSON.
        """
        if self.kind == "none":
            return _python(str(Path(__file__).resolve().parents[2]))
        root = "/code"
        inside = f"{root}/llmtrain/rewards/inside"
        options = [
            "--unshare-all",
            "--as-pid-1",
            "--die-with-parent",
            "--new-session",
            "--cap-drop",
            "ALL",
            "--hostname",
            "sandbox",
        ]
        options += [] if info_fd is None else ["--info-fd", str(info_fd)]
        options += ["--uid", NOBODY, "--gid", NOBODY, "--clearenv", "--setenv", "LANG", "C.UTF-8"]
        for folder in SYSTEM_FOLDERS:
            if Path(folder).is_symlink():
                options += ["--symlink", os.readlink(folder), folder]
            else:
                options += ["--ro-bind-try", folder, folder]
        options += ["--ro-bind-try", LINKER_CACHE, LINKER_CACHE]
        for folder in _python_folders():
            options += ["--ro-bind", folder, folder]
        options += ["--ro-bind", str(INSIDE), inside, "--dev-bind", os.devnull, os.devnull]
        options += ["--size", str(folder_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
        return [self.program, *options, "--", *_python(root)]

    @property
    def readable(self) -> list[str]:
        """The folders and files outside its own folder that a program may read."""
        inside = [] if self.kind == "bubblewrap" else [str(INSIDE)]
        return [*SYSTEM_FOLDERS, LINKER_CACHE, *_python_folders(), *inside]


def find_jail(mode: SandboxMode) -> Jail:
    """The jail of a mode. Raises ValueError if one is required and there is none."""
    if mode == "limits":
        return Jail("none", "the program's own limits (rollout.sandbox=limits)")
    program, problem = _bubblewrap()
    if program is not None:
        return Jail("bubblewrap", f"bubblewrap ({program})", program)
    if mode == "require":
        raise ValueError(
            f"rollout.sandbox=require: no jail for code, {problem}: install bubblewrap, or set rollout.sandbox=auto"
        )
    return Jail(
        "none",
        f"the program's own limits, which hold less than a jail ({problem}: install bubblewrap; docs/sandbox.md)",
    )


@cache
def _bubblewrap() -> tuple[str | None, str]:
    """The path of a bubblewrap that works here, or None and why there is none."""
    program = shutil.which("bwrap")
    if program is None:
        return None, "bwrap is not installed"
    command = Jail("bubblewrap", "", program).command(2**20)
    trial = [*command[: command.index("--") + 1], os.path.realpath(sys.executable), "-I", "-S", "-c", "pass"]
    try:
        ended = subprocess.run(trial, capture_output=True, text=True, timeout=TRIAL_SECONDS, env={}, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{program} does not start ({error})"
    if ended.returncode != 0:
        return None, f"{program} does not work here ({' '.join(ended.stderr.split())[:200]})"
    return program, ""


def _python(root: str) -> list[str]:
    return [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", START.format(root=root)]


def _python_folders() -> list[str]:
    """Where Python and its standard library are, if not in a system folder."""
    found = dict.fromkeys(os.path.realpath(folder) for folder in (sys.base_prefix, sys.base_exec_prefix))
    return [folder for folder in found if not folder.startswith("/usr/") and folder not in ("/usr", "/")]
