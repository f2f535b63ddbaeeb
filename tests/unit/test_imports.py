"""Imports point one way between the layers, and third parties are imported only in the packages that own them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "llmtrain"

CONTRACTS = {"config", "batch", "protocols", "system", "statistics"}
ROOMS = CONTRACTS | {"data", "models", "objectives", "train"}
SHELVES = ROOMS | {"tokenizers", "tasks", "rewards"}
LEARNING = SHELVES | {"rollout", "replies", "eval", "runs"}

MAY_IMPORT = {
    "system": set[str](),
    "config": {"system"},
    "batch": {"config", "system"},
    "protocols": {"config", "batch", "system"},
    "statistics": {"system"},
    "data": CONTRACTS,
    "models": CONTRACTS,
    "objectives": CONTRACTS,
    "train": CONTRACTS,
    "launch": CONTRACTS,
    "tokenizers": ROOMS,
    "tasks": ROOMS | {"rewards"},
    "rewards": ROOMS,
    "rollout": SHELVES,
    "replies": SHELVES,
    "eval": SHELVES | {"rollout", "replies"},
    "runs": SHELVES | {"rollout", "eval"},
    "recipes": LEARNING,
    "prove": LEARNING | {"recipes"},
    "tune": LEARNING | {"recipes"},
    "cli": LEARNING | {"launch", "recipes", "prove", "tune"},
    "__main__": {"cli"},
}
"""What each package may import of llmtrain, besides itself."""

ONLY_IN = {
    "accelerate": ("train/", "launch/"),
    "deepspeed": ("train/",),
    "datasets": ("data/",),
    "rensa": ("data/",),
    "psutil": ("launch/",),
}
"""Third parties and the rooms that alone import them."""

FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            if node.module == "llmtrain":
                yield from (f"llmtrain.{name.name}" for name in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert not list(imported(path))
        return
    allowed = MAY_IMPORT[room] | {room}
    wrong = [name for name in imported(path) if name.split(".")[0] == "llmtrain" and name.split(".")[1] not in allowed]
    assert not wrong, f"{room} must not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_third_parties_stay_in_their_rooms(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    wrong = [
        name
        for name in imported(path)
        if name.split(".")[0] in ONLY_IN and not place.startswith(ONLY_IN[name.split(".")[0]])
    ]
    assert not wrong, f"{place} must not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small_and_say_their_idea(path: Path) -> None:
    assert path.name not in {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
