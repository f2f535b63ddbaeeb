"""Reading sources: every format gives its documents, every fault one line that says where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llmtrain.config.data import Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources import text
from llmtrain.data.sources.documents import iter_documents, iter_texts
from llmtrain.data.sources.text import Document, FileText, cut_pieces

ROWS = [{"id": "1", "text": "first"}, {"id": "2", "text": "zweite, größer"}, {"id": "3", "text": "third\nline"}]
TEXTS = [row["text"] for row in ROWS]


def read(path: Path | str, on_bad_row: str = "error", **options: str) -> tuple[list[str], SourceLedger]:
    ledger = SourceLedger(path=str(path))
    documents = list(iter_documents(Source(path=str(path), **options), on_bad_row, ledger))
    for document in documents:
        ledger.kept["train"].add(document.num_bytes)
    ledger.check()
    return ["".join(document.pieces()) for document in documents], ledger


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_json_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1))


def write_json_mapping(path: Path) -> None:
    path.write_text(json.dumps({row["id"]: row for row in ROWS}, indent=1))


def write_json_data(path: Path) -> None:
    path.write_text(json.dumps({"version": "1", "data": ROWS}, indent=1))


def write_csv(path: Path) -> None:
    path.write_text('id,text\r\n1,first\r\n2,"zweite, größer"\r\n3,"third\nline"\r\n', newline="")


def write_tsv(path: Path) -> None:
    path.write_text('id\ttext\n1\tfirst\n2\tzweite, größer\n3\t"third\nline"\n')


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def write_arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def write_arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


WRITERS = [
    ("rows.jsonl", write_jsonl),
    ("lines.json", write_jsonl),
    ("list.json", write_json_list),
    ("mapping.json", write_json_mapping),
    ("data.json", write_json_data),
    ("rows.csv", write_csv),
    ("rows.tsv", write_tsv),
    ("rows.parquet", write_parquet),
    ("stream.arrow", write_arrow_stream),
    ("file.arrow", write_arrow_file),
]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, write, compression: str):
    plain = tmp_path / name
    write(plain)
    path = plain.with_name(name + compression)
    if compression == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    elif compression == ".zst":
        path.write_bytes(zstandard.compress(plain.read_bytes()))
    texts, ledger = read(path)
    assert texts == TEXTS
    assert ledger.text_field == "text"


def test_a_text_file_is_one_document_with_its_line_ends_and_without_its_byte_order_mark(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\n".encode())
    assert read(tmp_path / "a.txt")[0] == ["one\r\ntwo\n"]


def test_a_folder_is_read_recursively_in_order_and_what_is_not_read_is_counted(tmp_path: Path):
    for name in ("b.md", "a/z.rst", "a/c.txt", "a/picture.png", "LICENSE", ".hidden/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    texts, ledger = read(tmp_path)
    assert texts == ["a/c.txt", "a/z.rst", "b.md"]
    assert ledger.files_not_read == {".png": 1, "LICENSE": 1, "hidden": 1}


def test_a_glob_takes_the_files_that_match(tmp_path: Path):
    for name in ("x1.txt", "x2.txt", "y.txt"):
        (tmp_path / name).write_text(name)
    assert read(f"{tmp_path}/x*.txt")[0] == ["x1.txt", "x2.txt"]


def test_a_dataset_saved_to_disk_is_read_without_its_metadata(tmp_path: Path):
    write_arrow_stream(tmp_path / "data-00000-of-00001.arrow")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (tmp_path / "dataset_info.json").write_text('{"description": "x"}')
    assert read(tmp_path)[0] == TEXTS


def test_a_named_field_is_read(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl", text_field="id")[0] == ["1", "2", "3"]


def test_empty_documents_are_left_out_and_counted(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "x"}\n\n{"text": " \\n"}\n')
    texts, ledger = read(tmp_path / "a.jsonl")
    assert texts == ["x"]
    assert (ledger.dropped["empty"].documents, ledger.dropped["empty"].bytes) == (2, 2)


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'{"text": "x"', "malformed JSON", r":2: malformed JSON \(.* at column 13\)"),
        (b"[1]", "not an object", ":2: a row must be a JSON object, not list"),
        (b'{"text": "\xff"}', "invalid UTF-8", ":2: invalid UTF-8 at byte 10 of the line"),
        (b'{"text": "\\ud800"}', "invalid UTF-8", ":2: field 'text' is not valid Unicode at character 0"),
        (b'{"title": "x"}', "no text field", ":2: no field 'text', only 'title'"),
        (b'{"text": 5}', "text is not a string", ":2: field 'text' holds int, not a string"),
        (b'{"text": null}', "text is not a string", ":2: field 'text' holds NoneType, not a string"),
    ],
)
def test_a_bad_row_is_an_error_that_names_its_line_or_is_counted(tmp_path: Path, line: bytes, reason: str, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "after"}\n')
    with pytest.raises(ValueError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    texts, ledger = read(path, "skip")
    assert texts == ["good", "after"]
    assert {name: tally.documents for name, tally in ledger.bad_rows.items()} == {reason: 1}


def test_invalid_utf8_in_a_text_file_is_named_by_line_and_byte_across_chunks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(text, "CHUNK_BYTES", 4)
    (tmp_path / "bad.txt").write_bytes("äöü\nß\n".encode() + b"x\xe4y")
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(ValueError, match=r"bad\.txt:3: invalid UTF-8 at byte 11"):
        read(tmp_path)
    texts, ledger = read(tmp_path, "skip")
    assert texts == ["good"]
    assert ledger.bad_rows["invalid UTF-8"].bytes == 13


def test_a_character_cut_off_at_the_end_of_a_file_is_invalid(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("ok ä".encode()[:-1])
    with pytest.raises(ValueError, match="invalid UTF-8 at byte 3"):
        read(tmp_path / "a.txt")


def test_malformed_json_files_name_their_line(tmp_path: Path):
    (tmp_path / "a.json").write_text('[\n{"text": "x"},\n{"text": }\n]')
    with pytest.raises(ValueError, match=r"a\.json:3: malformed JSON"):
        read(tmp_path / "a.json")


def test_a_csv_row_with_too_many_values_names_its_line(tmp_path: Path):
    (tmp_path / "a.csv").write_text("id,text\n1,x\n2,y,z\n3,w\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: 3 values where the header names 2"):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", "skip")[0] == ["x", "w"]


def test_invalid_utf8_in_a_csv_file_is_a_bad_row(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"text\nfine\n\xff\n")
    texts, ledger = read(tmp_path / "a.csv", "skip")
    assert texts == ["fine"]
    assert ledger.bad_rows["invalid UTF-8"].documents == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "t", "summary": "s"}, "no field is known to hold the text; .* one of 'title', 'summary'"),
        ({"text": "t", "content": "c"}, "fields text and content could each be the text"),
    ],
)
def test_a_text_field_that_cannot_be_recognised_is_an_error_that_names_the_fields(tmp_path: Path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "no such file or folder"),
        ("missing/", "no such file or folder"),
        ("*.txt", "no file matches"),
        ("picture.png", "files of this suffix are not read, only .txt"),
        ("folder", "holds no file that is read"),
        ("empty.txt", r"no document with text \(1 read, of which 0 bad and 1 empty\)"),
        ("empty.jsonl", r"no document with text \(0 read"),
        ("unused.jsonl", r"\(3 read, of which 0 bad, 2 left out, as their weight is 0 and 1 empty\)"),
        ("broken.parquet", "not a readable Parquet file"),
        ("broken.arrow", "not a readable Arrow file"),
        ("broken.jsonl.gz", "cannot be read"),
    ],
)
def test_a_source_without_text_is_one_clear_line(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder").mkdir()
    for file in ("picture.png", "empty.jsonl", "empty.txt"):
        (tmp_path / file).touch()
    (tmp_path / "unused.jsonl").write_text('{"text": "a", "train": false}\n{"text": "b", "weight": 0}\n{"text": " "}')
    for file in ("broken.parquet", "broken.arrow", "broken.jsonl.gz"):
        (tmp_path / file).write_bytes(b"nonsense" * 9)
    with pytest.raises(ValueError, match=message) as raised:
        read(f"{tmp_path}/{name}" if name != "*.txt" else f"{tmp_path}/folder/*.txt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["no_such_file.txt", "./data", "some/deep/path", "~/nowhere_at_all"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name: str):
    with pytest.raises(ValueError, match=r"no such file or folder$"):
        read(name)


def test_a_hub_dataset_offline_is_one_clear_line():
    with pytest.raises(ValueError, match="no such file or folder, and the hub is off"):
        read("someone/dataset")


def test_a_hub_dataset_is_streamed_at_its_commit(monkeypatch):
    asked = {}

    def load_dataset(name, subset, *, split, revision, streaming):
        asked.update(name=name, subset=subset, split=split, revision=revision, streaming=streaming)
        return iter(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    commit = "0123456789" * 4
    assert read("someone/dataset", revision=commit, subset="en", split="test")[0] == TEXTS
    assert asked == {
        "name": "someone/dataset", "subset": "en", "split": "test", "revision": commit, "streaming": True
    }  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_compressed_file_that_is_cut_off_is_an_error(tmp_path: Path, cut: int):
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(bytes(range(65, 91)) * 50)[:-cut])
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "a.txt.zst")


def test_all_frames_of_a_zstd_file_are_read(tmp_path: Path):
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert read(tmp_path / "a.txt.zst")[0] == ["one two"]


def test_slices_of_a_text_file_are_of_its_characters_and_meet_without_overlap(tmp_path: Path):
    (tmp_path / "a.txt").write_text("äbcdefghij")
    assert read(tmp_path / "a.txt", slice="0%:90%")[0] == ["äbcdefghi"]
    assert read(tmp_path / "a.txt", slice="90%:100%")[0] == ["j"]


def test_slices_of_rows_are_of_each_files_rows(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(10)))
    assert read(tmp_path / "a.jsonl", slice="20%:50%")[0] == ["2", "3", "4"]


def test_a_backward_slice_is_an_error(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="slice '50%:20%' is not a range"):
        read(tmp_path / "a.txt", slice="50%:20%")


def test_a_large_text_file_is_not_held_yet_reads_the_same(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.txt"
    whole = "".join(f"line {i} of many größer\n" for i in range(300))
    path.write_text(whole)
    (small,) = iter_documents(Source(path=str(path)), "error", SourceLedger(path="x"))
    monkeypatch.setattr("llmtrain.data.sources.items.LARGE_CHARS", 100)
    monkeypatch.setattr(text, "CHUNK_BYTES", 37)
    (large,) = iter_documents(Source(path=str(path)), "error", SourceLedger(path="x"))
    assert isinstance(small.text, str) and isinstance(large.text, FileText)
    assert "".join(large.pieces()) == whole
    assert large.digest() == small.digest()
    assert (large.num_bytes, large.num_chars) == (small.num_bytes, small.num_chars)
    sliced = Source(path=str(path), slice="25%:75%")
    (part,) = iter_documents(sliced, "error", SourceLedger(path="x"))
    assert "".join(part.pieces()) == whole[len(whole) // 4 : 3 * len(whole) // 4]
    assert part.num_bytes == len("".join(part.pieces()).encode())


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_pieces_depend_on_the_text_alone_and_join_to_it(size: int):
    whole = "one two\nthree\n\nfour  five six\n" * 40 + "x" * 200 + " end of it\n" * 30
    pieces = list(cut_pieces([whole[i : i + size] for i in range(0, len(whole), size)], piece_chars=32))
    assert "".join(pieces) == whole
    assert pieces == list(cut_pieces([whole], piece_chars=32))
    assert len(pieces) > 10
    for piece in pieces[:-1]:
        assert piece.endswith("\n") or not piece[-1].isspace()


def test_documents_compare_by_their_text():
    assert Document("a", "x", 1).digest() == Document("a", "y", 1).digest() != Document("b", "x", 1).digest()


def test_every_string_of_an_evaluation_file_is_given(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "choices": ["a", {"b": "c"}], "answer": 3}\n')
    assert list(iter_texts(str(tmp_path / "a.jsonl"))) == ["q", "a", "c"]


@pytest.mark.parametrize("unused", [{"weight": 0}, {"train": False}, {"weight": 0.0, "train": False}])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_a_row_of_weight_zero_is_left_out_and_counted(tmp_path: Path, name: str, unused: dict[str, Any]):
    used = {key: not value if isinstance(value, bool) else 1 for key, value in unused.items()}
    rows = [{"text": "one", **used}, {"text": "two", **unused}]
    path = tmp_path / name
    if name == "rows.jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif name == "rows.csv":
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in (list(rows[0]), *(r.values() for r in rows))))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    texts, ledger = read(path)
    assert texts == ["one"]
    assert {reason: tally.documents for reason, tally in ledger.dropped.items()} == {"weight is 0": 1}


@pytest.mark.parametrize("weight", [{"weight": 0.5}, {"weight": 2}, {"weight": 1, "train": False}])
def test_a_text_that_counts_in_part_is_refused_by_name(tmp_path: Path, weight: dict[str, Any]):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "one", **weight}) + "\n")
    with pytest.raises(ValueError, match=rf"{path}:1: the row has weight={weight['weight']}") as caught:
        list(iter_documents(Source(path=str(path)), "error", SourceLedger(path="")))
    assert "\n" not in str(caught.value) and "used whole" in str(caught.value)


@pytest.mark.parametrize("value", ["12 kg", 350, None, 1, True, {"kg": 3}, ""])
def test_a_field_of_that_name_that_holds_no_weight_is_no_matter(tmp_path: Path, value: Any):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "one", "weight": value}) + "\n")
    assert read(path)[0] == ["one"]
