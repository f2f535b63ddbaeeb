"""Slices are of the whole source, for documents and rows alike: those that meet give everything once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import iter_examples
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents

CUTS = [0, 1, 10, 33.3, 50, 90, 100]


def texts(folder: Path, slice_text: str) -> list[str]:
    """The documents of a slice; none if it is empty."""
    ledger = SourceLedger(path=str(folder))
    try:
        documents = list(iter_documents(Source(path=str(folder), slice=slice_text), "error", ledger))
    except ValueError as error:
        if "no document with text" not in str(error):
            raise
        return []
    return ["".join(document.pieces()) for document in documents]


@pytest.mark.parametrize("num_files", [1, 7, 10, 101])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_slice_of_files_of_one_row_is_of_the_files(tmp_path: Path, num_files: int, kind: str):
    for number in range(num_files):
        path = tmp_path / f"{number:03d}{kind}"
        if kind == ".parquet":
            pq.write_table(pa.table({"text": [str(number)]}), path)
        else:
            path.write_text(f"text\n{number}\n" if kind == ".csv" else json.dumps({"text": str(number)}))
    everything = [str(number) for number in range(num_files)]
    assert texts(tmp_path, "0%:90%") == everything[: num_files * 9 // 10]
    assert [text for low, high in pairwise(CUTS) for text in texts(tmp_path, f"{low}%:{high}%")] == everything


def test_a_slice_of_text_files_is_of_all_their_characters(tmp_path: Path):
    for number, text in enumerate("äbcdefghij"):
        (tmp_path / f"{number}.txt").write_text(text)
    assert texts(tmp_path, "0%:90%") == list("äbcdefghi")
    assert texts(tmp_path, "90%:100%") == ["j"]


def test_a_slice_of_text_files_and_rows_is_of_each(tmp_path: Path):
    (tmp_path / "a.txt").write_text("0123456789")
    (tmp_path / "b.jsonl").write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(10)))
    assert texts(tmp_path, "0%:20%") == ["01", "row 0", "row 1"]
    assert texts(tmp_path, "20%:100%") == ["23456789", *(f"row {number}" for number in range(2, 10))]


def test_a_slice_of_instruction_rows_is_of_all_files(tmp_path: Path):
    for number in range(10):
        row = {"data": {"q": str(number), "a": "x"}}
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(row))
    fields = {"prompt": "data.q", "completion": "data.a"}
    source = Source(path=str(tmp_path), slice="0%:90%", fields=fields)
    assert len(list(iter_examples(source, "error", SourceLedger(path="x"), print))) == 9
