"""The map in docs/architecture.md names files, folders and names that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLANNED = ("llmtrain/prove/",)
"""Places that the page says are planned."""


def named_paths() -> list[str]:
    """Every path of the repository that the page names in code marks; of `llmtrain/recipes/NAME.py` the folder."""
    paths = re.findall(r"`((?:llmtrain|tests|benchmarks|recipes)/[\w/.]*)`", PAGE)
    return sorted({path.split("NAME")[0] for path in paths} - set(PLANNED))


def test_the_page_names_paths() -> None:
    assert len(named_paths()) > 30


@pytest.mark.parametrize("path", named_paths())
def test_a_path_on_the_map_exists(path: str) -> None:
    place = ROOT / path
    assert place.is_dir() if path.endswith("/") else place.is_file()


@pytest.mark.parametrize("path", PLANNED)
def test_what_is_planned_is_not_there_yet(path: str) -> None:
    assert not (ROOT / path).exists(), f"{path} exists: docs/architecture.md should no longer call it planned"


@pytest.mark.parametrize("package", sorted(p.parent.name for p in (ROOT / "llmtrain").glob("*/__init__.py")))
def test_every_package_is_on_the_map(package: str) -> None:
    assert f"| `llmtrain/{package}/` |" in PAGE


@pytest.mark.parametrize(
    ("name", "path"),
    re.findall(r"(?:listed in|a row of|members of) `(\w+)` (?:of|in) `([\w/.]+)`", PAGE),
)
def test_a_name_on_the_map_is_defined_there(name: str, path: str) -> None:
    assert re.search(rf"^(class )?{name}\b", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
