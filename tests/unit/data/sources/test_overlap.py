"""A file that is trained on and held out is refused, in every kind of run and under every name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_kinds import KINDS, write_kinds

Loaded = Callable[[dict[str, Any]], object]


@pytest.fixture(params=KINDS)
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Loaded:
    return lambda data: KINDS[request.param](data | {"cache_dir": str(tmp_path / "cache")}, lambda line: None)


def refused(load: Loaded, train: dict[str, Any], held_out: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match="so that it would be trained on and evaluated") as raised:
        load({"train": [train], "eval": [held_out]})
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_in_the_folder_that_is_trained_on_is_refused_and_can_be_excluded(load: Loaded, tmp_path: Path):
    folder = tmp_path / "data"
    write_kinds(folder / "sub" / "a.jsonl", "abc")
    held_out = write_kinds(folder / "sub" / "held.jsonl", "def")
    message = refused(load, {"path": str(folder)}, {"path": str(held_out)})
    assert "exclude: [sub/held.jsonl]" in message and "data.train[0]" in message and "data.eval[0]" in message
    assert load({"train": [{"path": str(folder), "exclude": ["sub/held.jsonl"]}], "eval": [{"path": str(held_out)}]})


@pytest.mark.parametrize("how", ["glob", "link", "copy", "another suffix", "folder"])
def test_the_same_content_under_another_name_is_refused(load: Loaded, tmp_path: Path, how: str):
    path = write_kinds(tmp_path / "data" / "a.jsonl", "abc")
    other = tmp_path / "other" / ("b.json" if how == "another suffix" else "b.jsonl")
    other.parent.mkdir()
    if how == "link":
        other.symlink_to(path)
    elif how != "glob":
        shutil.copy(path, other)
    named = {"glob": f"{path.parent}/*.jsonl", "folder": str(other.parent)}.get(how, str(other))
    refused(load, {"path": str(path)}, {"path": named})
    refused(load, {"path": named}, {"path": str(path)})


def test_slices_of_one_source_that_do_not_meet_are_fine_and_those_that_do_are_refused(load: Loaded, tmp_path: Path):
    path = str(write_kinds(tmp_path / "a.jsonl", "abcdefghij"))
    assert load({"train": [{"path": path, "slice": "0%:60%"}], "eval": [{"path": path, "slice": "60%:100%"}]})
    refused(load, {"path": path, "slice": "0%:60%"}, {"path": path, "slice": "50%:100%"})
    refused(load, {"path": path}, {"path": path, "slice": "90%:100%"})
    refused(load, {"path": path, "slice": "0%:60%"}, {"path": path})


def test_splits_of_one_folder_are_fine(load: Loaded, tmp_path: Path):
    write_kinds(tmp_path / "data" / "train.jsonl", "abc")
    write_kinds(tmp_path / "data" / "test.jsonl", "def")
    folder = str(tmp_path / "data")
    assert load({"train": [{"path": folder}], "eval": [{"path": folder, "split": "test"}]})
    refused(load, {"path": folder}, {"path": folder})
