"""The allocator is set by the command line, before torch makes a tensor, and by no import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.system import memory

PACKAGE = Path(memory.__file__).parents[1]

IMPORT_ALL = """
import ctypes, importlib, os, sys
called = []
class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "mallopt":
            called.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Library
import torch, transformers, peft, accelerate  # what these do to the environment is theirs
before = dict(os.environ)
for name in sys.argv[1:]:
    importlib.import_module(name)
changed = {name: os.environ.get(name) for name in before.keys() | os.environ.keys()
           if before.get(name) != os.environ.get(name)}
assert not changed, changed
assert not called, called
import llmtrain.system.memory as memory
memory.tune_for_training()
assert called and os.environ[memory.HUGE_PAGES] == "1"
"""

PREPARE = """
from llmtrain.recipes.command import prepare_process
prepare_process()
import torch, {recipe}
tensors = [torch.empty(2**20 + 1000 * i) for i in range(1, 9)]
aligned = all(tensor.data_ptr() % 4096 == 0 for tensor in tensors)
assert aligned != torch.accelerator.is_available()
"""


def clean(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter whose environment sets nothing of the allocator."""
    unset = ["env", "-u", memory.HUGE_PAGES, "-u", "DS_ACCELERATOR"]
    return subprocess.run(
        [*unset, sys.executable, "-c", *arguments], capture_output=True, text=True, timeout=150, check=False
    )


def test_importing_any_module_leaves_environment_and_allocator_as_they_were() -> None:
    paths = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]
    assert len(names) > 100
    done = clean(IMPORT_ALL, *sorted(names))
    assert done.returncode == 0, done.stderr


def test_a_recipe_that_is_imported_after_the_preparation_has_large_tensors_on_huge_pages() -> None:
    done = clean(PREPARE.format(recipe="llmtrain.recipes.policy"))
    assert done.returncode == 0, done.stderr


def test_an_untuned_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[tuple[int, int]] = []
    monkeypatch.setattr(memory, "set_allocator", lambda *option: options.append(option))
    monkeypatch.setattr(memory, "_is_tuned", False)
    with memory.separate_allocations():
        pass
    assert options == []
    monkeypatch.setattr(memory, "_is_tuned", True)
    with memory.separate_allocations():
        assert (memory.M_MMAP_MAX, memory.MAX_SEPARATE) in options
    assert options[-1] == (memory.M_MMAP_MAX, 0)
