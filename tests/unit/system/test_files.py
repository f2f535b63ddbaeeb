"""What cannot be written is named in one line, with the file and the fix; what was there stays."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.system.files import FREE_RUN, append_text, write_bytes, write_errors_named


@pytest.mark.parametrize("write", [lambda path: append_text(path, "x"), lambda path: write_bytes(path, b"x")])
@pytest.mark.parametrize(("place", "reason"), [("gone", "No such file or directory"), ("file", "Not a directory")])
def test_a_folder_that_is_gone_is_one_line(
    tmp_path: Path, write: Callable[[Path], None], place: str, reason: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"{place}/log.jsonl: cannot be written \({reason}\): look at its disk"):
        write(tmp_path / place / "log.jsonl")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "here: the disk is full; free some space or move run.dir"),
        (errno.EDQUOT, "here: the disk is full; free some space or move run.dir"),
        (errno.EROFS, r"here: cannot be written \(read-only\): look at its disk, then start again"),
        (errno.EIO, r"here: cannot be written \(read-only\): look at its disk, then start again"),
    ],
)
def test_every_error_of_a_disk_is_one_line(number: int, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"), write_errors_named("here", FREE_RUN):
        raise OSError(number, "read-only")


def test_a_file_that_cannot_be_replaced_stays_and_leaves_no_part(tmp_path: Path) -> None:
    folder = tmp_path / "name"
    folder.mkdir()
    (folder / "kept").write_text("")
    with pytest.raises(ValueError, match="name: cannot be written"):
        write_bytes(folder, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["name"] and (folder / "kept").exists()


def test_half_a_surrogate_pair_is_appended(tmp_path: Path) -> None:
    append_text(tmp_path / "log", "\ud83d\n")
    assert (tmp_path / "log").read_text() == "\\ud83d\n"
