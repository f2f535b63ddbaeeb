"""Text files of several documents, and of suffixes that are read on request."""

from __future__ import annotations

import gzip
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import iter_examples
from llmtrain.data.ledger import SourceLedger, text_summary
from llmtrain.data.sources.documents import END_MARKERS, iter_documents

END = "<|endoftext|>"


def read(path: Path, ledger: SourceLedger | None = None, **source: Any) -> list[str]:
    given = Source(path=str(path), **source)
    documents = iter_documents(given, "error", ledger or SourceLedger("x"))
    return ["".join(document.pieces()) for document in documents]


def stories(count: int) -> list[str]:
    return [f"Story {i}.\n\nIt ends {'é' * (i % 7)} here" for i in range(count)]


@pytest.mark.parametrize("between", [END, f"\n{END}\n", f"\r\n{END}", "\n\n\n", "%"], ids=repr)
@pytest.mark.parametrize("last", ["", "separator", "separator and line break"])
@pytest.mark.parametrize("chunk_bytes", [1, 5, 64, 1 << 20])
@pytest.mark.parametrize("large_chars", [10, 1 << 20], ids=["read again", "held"])
def test_documents_are_cut_at_the_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str, last: str, chunk_bytes: int, large_chars: int
) -> None:
    monkeypatch.setattr("llmtrain.data.sources.text.CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr("llmtrain.data.sources.separated.LARGE_CHARS", large_chars)
    expected, path = stories(9), tmp_path / "a.txt"
    end = {"": "", "separator": between, "separator and line break": f"{between}\n"}[last]
    path.write_bytes((between.join(expected) + end).encode())
    ledger = SourceLedger("x")
    documents = list(iter_documents(Source(path=str(path), separator=between), "error", ledger))
    assert ["".join(each.pieces()) for each in documents] == expected
    assert [each.num_bytes for each in documents] == [len(text.encode()) for text in expected]
    assert [each.num_chars for each in documents] == [len(text) for text in expected]
    assert ledger.read.bytes == sum(len(text.encode()) for text in expected)
    assert f"{path}, document 9" == documents[-1].where


def test_nothing_between_two_separators_is_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"a{END}{END}\n{END} \n{END}b")
    ledger = SourceLedger("x")
    assert read(tmp_path / "a.txt", ledger, separator=END) == ["a", "b"]
    assert ledger.dropped["empty"].documents == 3


@pytest.mark.parametrize("num_documents", [1, 7, 23])
def test_slices_that_meet_give_every_document_once(tmp_path: Path, num_documents: int) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(END.join(stories(num_documents)))
    cuts = ["0%", "10%", "33.3%", "50%", "90%", "100%"]
    found: list[str] = []
    for low, high in pairwise(cuts):
        try:
            found += read(tmp_path, separator=END, slice=f"{low}:{high}")
        except ValueError as error:
            if "no document with text" not in str(error):
                raise
    assert found == stories(num_documents) * 2


def test_what_precedes_invalid_utf_8_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(f"one{END}two{END}".encode() + b"\xff three")
    ledger = SourceLedger("x")
    found = list(iter_documents(Source(path=str(tmp_path / "a.txt"), separator=END), "skip", ledger))
    assert [each.text for each in found] == ["one", "two"] and ledger.bad_rows["invalid UTF-8"].documents == 1


def test_a_separator_of_rows_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match="separator='x' does nothing here: it holds no text files"):
        read(tmp_path, separator="x")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    source = Source(path=str(tmp_path / "b.jsonl"), separator="x")
    with pytest.raises(ValueError, match="separator='x' does nothing here"):
        list(iter_examples(source, "error", SourceLedger("x"), print))


@pytest.mark.parametrize("marker", END_MARKERS)
@pytest.mark.parametrize("large_chars", [10, 1 << 20])
def test_a_text_of_several_documents_is_a_warning_that_names_the_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str, large_chars: int
) -> None:
    monkeypatch.setattr("llmtrain.data.sources.items.LARGE_CHARS", large_chars)
    (tmp_path / "a.txt").write_text(marker.join(stories(5)))
    warning = f"warning: the text holds {marker!r} 4 times: if it separates documents, set the source's separator to it"
    for settings, warned in ({}, True), ({"separator": marker}, False):
        ledger = SourceLedger("x")
        read(tmp_path, ledger, **settings)
        assert (warning in text_summary(ledger)) == warned


def test_an_article_about_a_marker_is_no_warning(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"GPT-2 ends a document by {END}.")
    ledger = SourceLedger("x")
    read(tmp_path, ledger)
    assert "warning" not in text_summary(ledger)


@pytest.mark.parametrize("name", ["a.py", "a.PY", "a.py.gz", "sub/a.py"])
def test_other_suffixes_are_texts_on_request(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    code = "def f():\n    return 1\n"
    path.write_bytes(gzip.compress(code.encode()) if name.endswith(".gz") else code.encode())
    (tmp_path / "b.txt").write_text("b")
    assert sorted(read(tmp_path, text_suffixes=[".Py"])) == ["b", code]
    assert read(tmp_path) == ["b"]
    assert read(path, text_suffixes=[".py"]) == [code]
    with pytest.raises(ValueError, match=r"not read, only .*text_suffixes, such as \[\.py\], names others"):
        read(path)


def test_text_beside_rows_on_request_is_left_out_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "a.py").write_text("x = 1\n")
    ledger = SourceLedger("x")
    list(iter_examples(Source(path=str(tmp_path), text_suffixes=[".py"]), "error", ledger, lambda line: None))
    assert ledger.files == 1 and ledger.files_not_read == {".py": 1}


@pytest.mark.parametrize("suffix", [".json", ".csv", ".Parquet"])
def test_rows_are_no_texts(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=re.escape(f"text_suffixes={suffix.lower()} does nothing here")):
        read(tmp_path, text_suffixes=[suffix])
