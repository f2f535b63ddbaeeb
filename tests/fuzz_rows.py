"""Rows of every format that is read, and files of them of every kind."""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz_values import as_json, bytes_of

TURN = [{"role": "user", "content": "one and two"}, {"role": "assistant", "content": "two"}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]
ADDED = {"id": "a1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [ADDED]}
RESULT = {"role": "tool", "tool_call_id": "a1", "content": "3"}
ROWS: dict[str, list[list[dict[str, Any]]]] = {
    "pretrain": [[{"text": "some words and others " * 4}], [{"content": "a text", "meta": {"source": "x"}}]],
    "sft": [
        [{"messages": TURN}],
        [{"messages": [{"role": "system", "content": "be kind"}, *TURN, *TURN]}],
        [{"messages": [TURN[0], CALL, RESULT, TURN[1]], "tools": TOOLS}],
        [{"prompt": "one", "completion": "two"}],
        [{"instruction": "say", "input": "one", "output": "two"}],
        [{"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]}],
        [{"question": "one", "context": "more", "answer": "two"}],
    ],
    "pairs": [
        [{"prompt": "one", "chosen": "two", "rejected": "no"}],
        [{"chosen": TURN, "rejected": [TURN[0], {"role": "assistant", "content": "no"}]}],
        [{"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}],
    ],
    "kto": [
        [{"prompt": "one", "completion": "two", "label": True}, {"prompt": "two", "completion": "no", "label": False}],
        [{"messages": TURN, "label": 1}, {"messages": [{"role": "user", "content": "three"}, TURN[1]], "label": 0}],
    ],
    "policy": [
        [{"prompt": "one"}],
        [{"messages": TURN[:1], "answer": "two"}],
        [{"question": "1+1", "answer": "#### 2"}],
    ],
}
"""Recipe -> rows of each format that it reads."""
SUFFIXES = ["jsonl"] * 8 + ["json", "csv", "tsv", "parquet", "txt", "jsonl.gz", "jsonl.zst", "arrow", "md", "x"]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """JSON lines; the file."""
    path.write_text("".join(f"{as_json(row)}\n" for row in rows), encoding="utf-8")
    return path


def content_of(rows: Sequence[Any], suffix: str, drawn: random.Random) -> bytes:
    """Rows as a file with such a name holds them, in any encoding; of a kind that is not written here, JSON lines."""
    lines = "".join(f"{as_json(row)}\n" for row in rows)
    if suffix == "json":
        return bytes_of(as_json(rows), drawn)
    if suffix in ("csv", "tsv"):
        return bytes_of(table(rows, "," if suffix == "csv" else "\t"), drawn)
    if suffix == "parquet":
        return parquet(rows)
    if suffix.endswith(".gz"):
        return gzip.compress(bytes_of(lines, drawn), mtime=0)
    return bytes_of(lines, drawn)


def table(rows: Sequence[Any], delimiter: str) -> str:
    """Rows as CSV; of those that are no objects, empty ones."""
    text = io.StringIO()
    fields = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    writer = csv.DictWriter(text, fields, delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        texts = row.items() if isinstance(row, dict) else ()
        writer.writerow({key: value if isinstance(value, str) else as_json(value) for key, value in texts})
    return text.getvalue()


def parquet(rows: Sequence[Any]) -> bytes:
    """Rows as Parquet; those that it cannot hold as text."""
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    try:
        table = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        pyarrow.parquet.write_table(table, sink)
    except Exception:  # what Arrow has no type for
        table = pyarrow.table({"text": [as_json(row) for row in rows]})
        sink = io.BytesIO()
        pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()
