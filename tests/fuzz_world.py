"""The world that a fuzzed command meets: tiny models, rows that are right, and a run of a command in this process."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import yaml
from fuzz_configs import config_tree
from fuzz_rows import ROWS, write_rows
from tiny_chat import write_model

LIMIT_SECONDS = 300
CALLING = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A short template, so that rows fit, which writes tools and calls."""


class Hung(BaseException):
    """A command that did not end."""


class Done(SystemExit):
    """All is checked; training would begin."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or the error that it let through, and what it printed."""

    code: int | str
    out: str
    err: str

    @property
    def fault(self) -> str | None:
        """What is wrong with that; None: it is as it must be."""
        if self.code not in (0, 2):
            return f"ended with {self.code}"
        if "Traceback (most recent call last)" in self.out + self.err:
            return "printed a traceback"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ") or ": error: " in line]
        if self.code == 2 and (len(errors) != 1 or not self.err.endswith("\n")):
            return f"refused with {len(errors)} lines of error"
        if self.code == 2 and self.err.startswith("error: ") and self.err.count("\n") != 1:
            return "an error of several lines"
        return None


class World:
    """A folder with what commands are given, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def chat(self) -> Path:
        folder = write_model(self.folder / "chat")
        (folder / "chat_template.jinja").write_text(CALLING, encoding="utf-8")
        return folder

    @cached_property
    def base(self) -> Path:
        return write_model(self.folder / "base", chat=False)

    @cached_property
    def runs(self) -> dict[str, Path]:
        """Finished runs of one step: of a whole model, of an adapter."""
        made = {}
        for name, adapter in (("whole", "none"), ("adapter", "lora")):
            folder = self.folder / name
            folder.mkdir()
            rows = write_rows(folder / "rows.jsonl", ROWS["sft"][0] * 4)
            tree = config_tree("sft", self, folder, rows)
            tree["adapter"] = {"kind": adapter} | ({"rank": 2} if adapter == "lora" else {})
            (folder / "config.yaml").write_text(yaml.safe_dump(tree))
            ended = run(["sft", str(folder / "config.yaml")], folder=folder, trains=True)
            assert ended.code == 0, ended
            made[name] = folder / "run"
        return made


def run(argv: Sequence[str], *, folder: Path, stdin: str = "", trains: bool = False) -> Ended:
    """Run `llmtrain ARGV` in a folder, up to where it would train or start other processes."""
    from accelerate.state import AcceleratorState

    from llmtrain.cli.main import main

    AcceleratorState._reset_state(reset_partial_state=True)
    out, err = io.StringIO(), io.StringIO()
    code: int | str = 0
    outputs = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with _patched(trains), outputs[0], outputs[1], _limited(), _here(stdin, folder):
        try:
            main(list(argv))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Hung as hung:
            code = f"no end within {LIMIT_SECONDS} s\n{''.join(traceback.format_tb(hung.__traceback__)[-12:])}"
        except BaseException as error:
            code = "".join(traceback.format_exception(error))
    AcceleratorState._reset_state(reset_partial_state=True)
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _here(stdin: str, folder: Path) -> Iterator[None]:
    """Leave nothing of a command in this process; it writes to `folder` where it names a file without one."""
    environment, before, argv, cwd = dict(os.environ), sys.stdin, sys.argv, Path.cwd()
    hook = sys.excepthook
    sys.stdin = io.StringIO(stdin)
    with warnings.catch_warnings():
        try:
            os.chdir(folder)
            yield
        finally:
            sys.stdin, sys.argv, sys.excepthook = before, argv, hook
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(cwd)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS, 1)  # again, where a library swallows it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _patched(trains: bool) -> Iterator[None]:
    """Up to the first step, the first child process."""
    import llmtrain.cli.crossval
    import llmtrain.recipes.command
    import llmtrain.tune.child
    from llmtrain.system import leaving
    from llmtrain.train.loop import Loop

    def done(*_: Any, **__: Any) -> Any:
        raise Done(0)

    def leave(status: int) -> Any:
        raise SystemExit(status)

    with contextlib.ExitStack() as stack:
        if not trains:
            stack.enter_context(patch.object(Loop, "run", done))
        stack.enter_context(patch.object(llmtrain.cli.crossval, "run_recipe", done))
        stack.enter_context(patch.object(llmtrain.tune.child, "run_command", done))
        for module in (leaving, llmtrain.recipes.command):
            stack.enter_context(patch.object(module, "leave", leave))
        yield
    gc.collect(0)
