"""What a name means that was given: a path of this machine or a name of the hub, a package's file, a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

OUR_FOLDERS = ("runs", "data")  # where the docs put runs and data: they need not be there yet


def local_path(name: str | Path) -> Path:
    """The path that a name means on this machine, `~` and `~user` replaced.

    A user that the machine does not have is left as written, as a shell leaves it, so that `~someone/model` is a
    path where nothing is (pathlib raises RuntimeError).
    """
    return Path(os.path.expanduser(name))


def is_local(name: str) -> bool:
    """Whether a name is one of a file or folder here, there or not: `./x`, `a/b/c`, `runs/x`, or in a folder that is.

    A hub id is `NAME` or `OWNER/NAME`. So a mistyped path is refused at once, without asking the hub.
    """
    first, _, rest = name.partition("/")
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or Path(name).exists()
        or (bool(rest) and (first in OUR_FOLDERS or Path(first).is_dir()))
    )


def no_folder(name: str | Path) -> str:
    """What to say of a name that is to be a folder's and is not."""
    return "a file: give the folder that it is in" if local_path(name).is_file() else "no such folder"


def package_of(path: str) -> str | None:
    """The Python package that `PACKAGE:FILE.gguf` names; None: it is the path of a file."""
    package, colon, _ = path.partition(":")
    return package if colon and package.isidentifier() else None


def checkpoint_hint(folder: Path) -> str | None:
    """What to give in place of a checkpoint's folder, `RUN/checkpoints/step-N`, or of that of all; None: it is none."""
    if folder.parent.name == "checkpoints" and folder.name.startswith("step-"):
        run, step = folder.parent.parent, folder.name.removeprefix("step-").lstrip("0") or "0"
        return f"a checkpoint: `llmtrain export {run} --step {step} --output FOLDER` makes a model of it; give FOLDER"
    if folder.name == "checkpoints" and any(folder.glob("step-*")):
        return f"checkpoints: give the run, {folder.parent}"
    return None
