"""Folders with links, hidden and special files: each file is read once, and what is not read is counted or named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmtrain.config.data import Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def read(path: Path | str) -> tuple[list[str], dict[str, int]]:
    ledger = SourceLedger(path="x")
    texts = [str(each.text) for each in iter_documents(Source(path=str(path)), "error", ledger)]
    return texts, ledger.files_not_read


def test_links_to_folders_and_files_elsewhere_are_followed(tmp_path: Path):
    data = write(tmp_path / "data", "a.txt")
    elsewhere = write(tmp_path / "elsewhere", "b.txt", "deep/c.txt", "one.txt")
    (data / "folder").symlink_to(elsewhere / "deep")
    (data / "file.txt").symlink_to(elsewhere / "one.txt")
    assert read(data) == (["a.txt", "one.txt", "deep/c.txt"], {})


def test_links_of_linked_folders_are_followed_too(tmp_path: Path):
    data, second, third = (write(tmp_path / name, f"{name}.txt") for name in ("1", "2", "3"))
    (data / "link").symlink_to(second)
    (second / "link").symlink_to(third)
    assert sorted(read(data)[0]) == ["1.txt", "2.txt", "3.txt"]


@pytest.mark.parametrize("target", ["data", "data/sub", ".", "data/sub/../.."])
def test_cycles_are_cut_and_counted(tmp_path: Path, target: str):
    data = write(tmp_path / "data", "a.txt", "sub/b.txt")
    (data / "sub" / "loop").symlink_to(tmp_path / target)
    assert read(data) == (["a.txt", "sub/b.txt"], {"link to what is read already": 1})


def test_a_file_or_folder_that_links_name_again_is_read_once_under_its_own_name(tmp_path: Path):
    data = write(tmp_path / "data", "real/x.txt", "z.txt")
    (data / "a.txt").symlink_to(data / "z.txt")
    (data / "latest").symlink_to(data / "real")
    (data / "also").symlink_to(data / "real" / "x.txt")
    assert read(data) == (["real/x.txt", "z.txt"], {"link to what is read already": 3})


def test_two_links_to_one_place_elsewhere_are_read_once(tmp_path: Path):
    data = write(tmp_path / "data", "a.txt")
    elsewhere = write(tmp_path / "elsewhere", "in/b.txt", "c.txt")
    for name in ("1", "2"):
        (data / name).symlink_to(elsewhere)
    (data / "0").symlink_to(elsewhere / "in")
    assert read(data) == (["in/b.txt", "c.txt", "a.txt"], {"link to what is read already": 2})


def test_a_glob_that_goes_through_links_reads_each_file_once(tmp_path: Path):
    data = write(tmp_path / "data", "a.txt", "sub/b.txt")
    (data / "sub" / "loop").symlink_to(data)
    (data / "0.txt").symlink_to(data / "a.txt")
    texts, not_read = read(f"{data}/**/*.txt")
    assert texts == ["a.txt", "sub/b.txt"]
    assert set(not_read) == {"link to what is read already"}
    assert read(f"{data}/*") == (["a.txt"], {"folder": 1, "link to what is read already": 1})


def test_broken_links_hidden_and_special_files_are_counted(tmp_path: Path):
    data = write(tmp_path / "data", "a.txt", ".hidden.txt", ".git/x.txt", ".git/y.txt")
    (data / "gone.txt").symlink_to(tmp_path / "gone.txt")
    (data / "self.txt").symlink_to(data / "self.txt")
    os.mkfifo(data / "pipe.txt")
    assert read(data) == (["a.txt"], {"broken link": 2, "hidden": 2, "pipe, socket or device": 1})


def test_a_folder_of_a_snapshot_whose_files_are_links_to_blobs_is_read_by_the_links_names(tmp_path: Path):
    write(tmp_path / "blobs", "0123")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "text.txt").symlink_to(Path("../../blobs/0123"))
    assert read(snapshot) == (["0123"], {})


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write(tmp_path / "data", "a.txt", "sub/b.txt")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"data/sub: cannot be listed \(Permission denied\)"):
        read(data)
