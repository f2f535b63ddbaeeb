"""Compressed files, and files whose name says another kind than they are."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from llmtrain.config.data import Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents

LINES = b'{"text": "x"}\n{"text": "y"}\n'


def texts(path: Path) -> list[str]:
    documents = iter_documents(Source(path=str(path)), "error", SourceLedger(path=str(path)))
    return ["".join(document.pieces()) for document in documents]


def zstd_frame(data: bytes, window_log: int) -> bytes:
    """One raw block in a frame of that window (RFC 8878, section 3.1.1)."""
    block_header = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + block_header + data


SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.zst", zstd_frame(LINES, 27)),
        ("a.jsonl.zst", zstd_frame(LINES, 30)),
        ("a.ndjson.zst", zstd_frame(LINES, 31)),
        ("a.jsonl.zst", zstandard.compress(LINES[:14]) + SKIPPABLE + zstandard.compress(LINES[14:])),
        ("a.jsonl.bz2", bz2.compress(LINES[:14]) + bz2.compress(LINES[14:])),
        ("a.jsonl.xz", lzma.compress(LINES)),
        ("A.JSONL.GZ", gzip.compress(LINES[:14]) + gzip.compress(LINES[14:])),
    ],
    ids=["2^27", "2^30", "2^31", "skippable", "bz2", "xz", "gz"],
)
def test_compressed_files_are_read(tmp_path: Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    assert texts(tmp_path / name) == ["x", "y"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.json"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(LINES), "holds gzip data"),
        (zstandard.compress(LINES), "holds zstd data"),
        (LINES.decode().encode("utf-16"), "is UTF-16, .* iconv -f UTF-16 -t UTF-8"),
    ],
    ids=["gzip", "zstd", "UTF-16"],  # of the data they would hold the time, and differ between processes
)
def test_a_file_of_another_kind_than_its_name_says_is_refused_by_it(tmp_path: Path, name: str, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        texts(tmp_path / name)
    assert name in str(raised.value)


def test_garbage_after_a_gzip_file_is_an_error(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + b"garbage")
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: cannot be read"):
        texts(tmp_path / "a.jsonl.gz")
