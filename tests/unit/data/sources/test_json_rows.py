"""Which objects of a JSON file are its rows, and what is lost with one of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import iter_examples
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents


def texts(path: Path, on_bad_row="error", **options) -> list[str]:
    documents = iter_documents(Source(path=str(path), **options), on_bad_row, SourceLedger(path=str(path)))
    return ["".join(document.pieces()) for document in documents]


COMMENTS = [{"text": "comment 1"}, {"text": "comment 2"}]


@pytest.mark.parametrize(
    ("tree", "options", "expected"),
    [
        ({"text": "article", "comments": COMMENTS}, {}, ["article"]),
        ({"story": "article", "comments": COMMENTS}, {"text_field": "story"}, ["article"]),
        ({"version": 1, "comments": COMMENTS}, {}, ["comment 1", "comment 2"]),
        ({"a": COMMENTS[0], "b": COMMENTS[1]}, {}, ["comment 1", "comment 2"]),
        ({"data": {"text": "nested"}}, {"text_field": "data.text"}, ["nested"]),
        ({"data": {"text": "nested"}, "data.text": "literal"}, {"text_field": "data.text"}, ["literal"]),
    ],
)
def test_an_object_with_a_text_is_the_row_and_its_lists_are_not(tmp_path: Path, tree, options, expected):
    (tmp_path / "a.json").write_text(json.dumps(tree, indent=1))
    assert texts(tmp_path / "a.json", **options) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"prompt": "q", "completion": "a", "sources": [{"text": "x"}, {"text": "y"}]},
    ],
)
def test_an_object_in_a_known_format_is_the_row(tmp_path: Path, row):
    (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
    ledger = SourceLedger(path="x")
    assert len(list(iter_examples(Source(path=str(tmp_path / "a.json")), "error", ledger, print))) == 1


@pytest.mark.parametrize("torn", [0, 1, 2, 5])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_torn_line_of_json_lines_is_one_row_whatever_the_suffix(tmp_path: Path, torn: int, mark: bytes):
    lines = [json.dumps({"text": f"row {number}"}) for number in range(6)]
    lines[torn] = lines[torn][:8]
    (tmp_path / "a.json").write_bytes(mark + "\n".join(lines).encode())
    assert texts(tmp_path / "a.json", "skip") == [f"row {number}" for number in range(6) if number != torn]
    with pytest.raises(ValueError, match=rf"a\.json:{torn + 1}: malformed JSON"):
        texts(tmp_path / "a.json")


def test_objects_over_several_lines_that_follow_one_another_are_rows(tmp_path: Path):
    (tmp_path / "a.json").write_text("\n".join(json.dumps(row, indent=2) for row in COMMENTS) + "\n")
    assert texts(tmp_path / "a.json") == ["comment 1", "comment 2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "A.JSONL"])
def test_a_number_of_too_many_digits_is_a_bad_row_with_its_line(tmp_path: Path, name: str):
    rows = ['{"text": "x"}', '{"text": "y", "n": ' + "1" * 5000 + "}", '{"text": "z"}']
    (tmp_path / name).write_text("\n".join(rows))
    assert texts(tmp_path / name, "skip") == ["x", "z"]
    with pytest.raises(ValueError, match=rf"{name}:2: malformed JSON \(a number has too many digits\)"):
        texts(tmp_path / name)


@pytest.mark.parametrize("first", ['{"text": null}', '{"title": "x"}', '{"text": ["x"]}', "[]", '{"text": 5}'])
def test_the_text_field_is_recognised_from_the_first_good_row(tmp_path: Path, first: str):
    (tmp_path / "a.jsonl").write_text(first + '\n{"text": "x"}\n{"text": "y"}\n')
    assert texts(tmp_path / "a.jsonl", "skip") == ["x", "y"]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: "):
        texts(tmp_path / "a.jsonl")
