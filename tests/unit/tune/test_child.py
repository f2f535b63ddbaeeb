"""A recipe in a process of its own: its exit code, and the one signal to stop that it gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.system.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from llmtrain.tune.child import Stopped, run_recipe

SCRIPT = """#!/bin/sh
echo "$@" > {folder}/arguments
trap 'echo asked >> {folder}/asked; {on_term}' TERM
trap 'echo interrupted >> {folder}/asked' INT
echo $$ > {folder}/started.partial
mv {folder}/started.partial {folder}/started
while :; do sleep 0.02; done
"""


def recipe(folder: Path, on_term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the place of Python's, which notes what it gets."""
    path = folder / "python"
    path.write_text(SCRIPT.format(folder=folder, on_term=on_term))
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def send_when(path: Path, *numbers: signal.Signals) -> threading.Thread:
    """Signals to this process, the first once a file is there, each further one once the one before was noted."""

    def send() -> None:
        for number, noted in zip(numbers, (path, path.with_name("asked")), strict=False):
            until(noted.exists)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_the_exit_code_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    assert run_recipe("sft", ["a.yaml"]) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_on_once_as_one_to_save_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    recipe(tmp_path, "exit 7", monkeypatch)
    before = signal.getsignal(number)
    thread = send_when(tmp_path / "started", number)
    with pytest.raises(Stopped) as stopped:
        run_recipe("sft", ["a.yaml"])
    thread.join()
    assert stopped.value.exit_code == (EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_SAVED)
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert (tmp_path / "arguments").read_text().endswith(f"{tmp_path / 'python'} -m llmtrain sft a.yaml\n")
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(tmp_path, "true", monkeypatch)
    thread = send_when(tmp_path / "started", signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_recipe("sft", ["a.yaml"])
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "started").read_text()), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's end is Linux's")
def test_a_recipe_is_asked_to_save_where_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(SCRIPT.format(folder=tmp_path, on_term="exit 7"))
    script.chmod(0o755)
    code = f"from llmtrain.tune.child import run_command; run_command([{str(script)!r}], lambda: False)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: (tmp_path / "started").exists())
    parent.kill()
    parent.wait()
    until(lambda: (tmp_path / "asked").exists())


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
