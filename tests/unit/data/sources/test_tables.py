"""Rows of CSV, TSV, Parquet and Arrow files in which a quote or a value is at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtrain.config.data import Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources import tables
from llmtrain.data.sources.documents import iter_documents


def texts(path: Path, on_bad_row="error", **options) -> list[str]:
    ledger = SourceLedger(path=str(path))
    documents = iter_documents(Source(path=str(path), **options), on_bad_row, ledger)
    return ["".join(document.pieces()) for document in documents]


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ('2,"never closed', 3),
        ('2,"closed" too early', 3),
        ('2,"swallows\n3,others",and,more', 3),
    ],
)
def test_a_quote_at_fault_is_one_bad_row_and_the_rows_after_it_are_read(tmp_path: Path, bad: str, line: int):
    path = tmp_path / "a.csv"
    path.write_text(f'id,text\n1,first\n{bad}\n7,seventh\n8,"with ""quotes"", and\ntwo lines"\n9,last\n')
    with pytest.raises(ValueError, match=rf"a\.csv:{line}: "):
        texts(path)
    assert texts(path, "skip") == ["first", "seventh", 'with "quotes", and\ntwo lines', "last"]


@pytest.mark.parametrize("name", ["a.tsv", "A.TSV"])
@pytest.mark.parametrize("value", ['"Hello" she said', '"open', 'a 5" disk, new', 'he said "no"'])
def test_quotes_of_a_tsv_file_without_quoting_are_text(tmp_path: Path, name: str, value: str):
    (tmp_path / name).write_text(f"id\ttext\n1\t{value}\n2\tlast\n")
    assert texts(tmp_path / name) == [value, "last"]


def test_a_quoted_tsv_file_is_read_as_quoted(tmp_path: Path):
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"tab\tand\nline"\n2\tlast\n')
    assert texts(tmp_path / "a.tsv") == ["tab\tand\nline", "last"]


def strings(*values: bytes) -> pa.Array:
    """A column of strings, valid or not."""
    return pa.array(values, pa.binary()).view(pa.string())


FAR = pa.array([10**7, 0, 1], pa.int32()).cast(pa.date32())


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    "column",
    [
        FAR,
        strings(b"ok", b"\xff", b"ok"),
        pa.StructArray.from_arrays([FAR], names=["when"]),
        pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), FAR),
    ],
    ids=["date", "invalid", "nested", "list"],
)
def test_a_value_that_python_has_not_does_no_harm_in_another_column(tmp_path: Path, suffix: str, column: pa.Array):
    path = tmp_path / f"a{suffix}"
    write(path, pa.table({"text": ["x", "y", "z"], "odd": column}))
    assert texts(path) == ["x", "y", "z"]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_invalid_text_in_a_table_is_a_bad_row_with_its_number(tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    write(path, pa.table({"text": strings(b"x", b"\xff", b"z")}))
    assert texts(path, "skip") == ["x", "z"]
    with pytest.raises(ValueError, match=rf"a{suffix} row 1: field 'text' is not valid Unicode"):
        texts(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("text_field", [None, "text", "meta.text", "note"])
def test_of_a_table_only_the_column_of_the_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, text_field: str | None
):
    odd = pa.array([10**7], pa.int32()).cast(pa.date32())  # a year that Python has no date for
    meta = pa.array([{"text": "in meta"}])
    write(tmp_path / f"a{suffix}", pa.table({"text": ["x"], "odd": odd, "meta": meta, "note": ["n"]}))
    read: list[set[str]] = []
    rows = tables._batch_rows

    def spied(batches: Any, path: Path) -> Any:
        for row in rows(batches, path):
            read.append(set(row.fields))
            yield row

    monkeypatch.setattr(tables, "_batch_rows", spied)
    field = text_field or "text"
    expected = {"text": "x", "meta.text": "in meta", "note": "n"}[field]
    assert texts(tmp_path / f"a{suffix}", text_field=text_field) == [expected]
    assert read == [{field.partition(".")[0]}]


def test_of_a_table_without_a_known_text_all_names_are_named(tmp_path: Path):
    write(tmp_path / "a.parquet", pa.table({"one": ["x"], "two": ["y"]}))
    with pytest.raises(ValueError, match="set the source's text_field to one of 'one', 'two'"):
        texts(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no field 'three', only 'one', 'two'"):
        texts(tmp_path / "a.parquet", text_field="three")


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    write(tmp_path / "a.arrow", table)
    (tmp_path / "a.csv").write_text("text,text\nx,y\n")
    for path in (tmp_path / "a.arrow", tmp_path / "a.csv"):
        with pytest.raises(ValueError, match=rf"{path.name}: two columns are called 'text'"):
            texts(path)


def test_columns_without_a_name_may_be_several(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,,\nx,,\n")
    assert texts(tmp_path / "a.csv") == ["x"]


def write(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
