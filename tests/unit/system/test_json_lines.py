"""A file of JSON objects is read while it grows, and after a kill."""

from __future__ import annotations

from pathlib import Path

from llmtrain.system.json_lines import parsed, whole_lines


def test_a_line_without_its_end_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    assert list(whole_lines(path)) == [b'{"step": 1}\n']


def test_a_text_keeps_the_line_ends_that_json_leaves_in_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\u2028b\x0b"}\n', encoding="utf-8")
    assert len(list(whole_lines(path))) == 1


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert list(whole_lines(tmp_path / "rows.jsonl")) == []


def test_what_is_no_object_is_none() -> None:
    assert parsed(b'{"step": 1}\n') == {"step": 1}
    for line in (b"[1]\n", b"1\n", b'{"step"\n', b"\xff\n", b"\n", b"[" * 100_000 + b"\n"):
        assert parsed(line) is None
