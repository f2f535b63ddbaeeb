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

MAY_IMPORT_WITHIN = {
    "data/sources": set[str](),
    "data/formats": {"sources"},
    "data/chat": {"sources", "formats"},
    "data/store": {"sources", "formats", "chat"},
    "data/packing": {"store"},
    "data/loader": {"packing"},
    "data/quality": {"sources", "formats"},
    "models/heads": set[str](),
    "models/adapters": {"heads"},
    "models/cpu": {"adapters"},
    "models/paths": set[str](),
    "models/folders": {"heads", "adapters", "paths"},
    "models/wrappers": {"heads", "adapters", "cpu", "paths", "folders"},
    "eval/tasks": set[str](),
    "eval/before_after": {"tasks"},
    "eval/bias": {"tasks"},
}
"""What each folder of a package may import of the folders beside it; files beside them are free."""

AGAINST_IT = {
    ("data/sources/files.py", "llmtrain.data.store.token_store"): "a folder of text may hold a store, which is refused",
    (
        "models/folders/reward.py",
        "llmtrain.models.wrappers.checks",
    ): "a reward model that is opened is wrapped to score",
    ("models/folders/reward.py", "llmtrain.models.wrappers.reward_model"): "the same",
}
"""(file, module) -> why it is imported all the same."""

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


@pytest.mark.parametrize("folder", MAY_IMPORT_WITHIN)
def test_imports_between_folders_of_a_package_point_one_way(folder: str) -> None:
    package, own = folder.split("/")
    beside = {other.split("/")[1] for other in MAY_IMPORT_WITHIN if other.startswith(f"{package}/")}
    forbidden = {f"llmtrain.{package}.{other}" for other in beside - MAY_IMPORT_WITHIN[folder] - {own}}
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for name in imported(path)
        if ".".join(name.split(".")[:3]) in forbidden
    }
    assert found == {(file, name) for file, name in AGAINST_IT if file.startswith(f"{folder}/")}


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
