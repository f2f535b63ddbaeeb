"""JSON and JSON lines -> rows."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain.data.sources.compressed import open_text
from llmtrain.data.sources.rows import BadRow, IsRow, Row, Rows, Wanted

SAMPLE_LINES = 16
SPACE = re.compile(r"\s*")


def read_jsonl(path: Path, wanted: Wanted) -> Rows:
    """The objects of a file of JSON lines; blank lines are left out."""
    for number, line in _lines(path):
        where = f"{path}:{number}"
        found = _parse(line, where)
        yield found if isinstance(found, BadRow) else _row(found, where, len(line))


def count_jsonl(path: Path) -> int:
    """The number of rows that `read_jsonl` gives."""
    return sum(1 for _ in _lines(path))


def read_json(path: Path, wanted: Wanted) -> Rows:
    """The rows of a JSON file: a list of objects, objects one after the other, one that holds them, or JSON lines.

    An object that `wanted.is_row` accepts is one row. Any other may hold rows as a mapping of keys to rows, or as its
    only list of objects (`{"data": [...]}`). Lists and objects are read into memory whole.
    """
    if _is_json_lines(path):
        yield from read_jsonl(path, wanted)
        return
    with open_text(path) as file:
        data = file.read().removeprefix(codecs.BOM_UTF8)
    tree = _parse(data, str(path))
    trees = [tree]
    if isinstance(tree, BadRow):
        trees = _concatenated(data) or [tree]
    for number, tree in enumerate(trees):
        if isinstance(tree, BadRow):
            yield tree
            continue
        where = str(path) if len(trees) == 1 else f"{path}, object {number}"
        for name, item in _rows_of(tree, wanted.is_row):
            yield _row(item, f"{where}, {name}" if name else where)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of each line that is not blank."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            row = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if row:
                yield number, row


def _parse(data: bytes, where: str) -> Any | BadRow:
    """The tree of a line, `where` naming it, or of a whole file, in which the line is named."""
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        before = data.count(b"\n", 0, error.start)
        place = f":{before + 1}: invalid UTF-8 at byte {error.start}" if before else ""
        message = where + (place or f": invalid UTF-8 at byte {error.start} of the line")
        return BadRow("invalid UTF-8", message, len(data))
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if b"\n" in data else ""
        message = f"{where}{line}: malformed JSON ({error.msg} at column {error.colno})"
        return BadRow("malformed JSON", message, len(data))
    except RecursionError:
        return BadRow("malformed JSON", f"{where}: malformed JSON (nested too deep)", len(data))
    except ValueError:  # Python's limit on the conversion of long integers, which is quadratic
        return BadRow("malformed JSON", f"{where}: malformed JSON (a number has too many digits)", len(data))


def _concatenated(data: bytes) -> list[Any]:
    """The objects that a file holds one after the other, over several lines each; [] if it is anything else."""
    decoder = json.JSONDecoder()
    trees: list[Any] = []
    try:
        text = data.decode().strip()
        position = 0
        while position < len(text):
            tree, position = decoder.raw_decode(text, position)
            position += len(SPACE.match(text, position)[0])  # type: ignore[index]
            trees.append(tree)
    except (ValueError, RecursionError):
        return []
    return trees if all(isinstance(tree, dict) for tree in trees) else []


def _is_json_lines(path: Path) -> bool:
    """Whether at least half of the first lines with text, and not only one line, are each a whole JSON object."""
    lines = [line for _, line in itertools.islice(_lines(path), SAMPLE_LINES)]
    whole = sum(isinstance(_parse(line, ""), dict) for line in lines)
    return len(lines) > 1 and 2 * whole >= len(lines)


def _rows_of(tree: Any, is_row: IsRow) -> Iterator[tuple[str, Any]]:
    """(name of its place, row) of every row that a JSON tree holds."""
    if isinstance(tree, dict):
        if is_row(Row(tree, "")):
            yield "", tree
            return
        if tree and all(isinstance(value, dict) for value in tree.values()):
            yield from ((f"key {key!r}", row) for key, row in tree.items())
            return
        lists = [name for name, value in tree.items() if isinstance(value, list) and value and _is_object(value[0])]
        if len(lists) != 1:
            yield "", tree
            return
        yield from ((f"{lists[0]} row {number}", row) for number, row in enumerate(tree[lists[0]]))
    elif isinstance(tree, list):
        yield from ((f"row {number}", row) for number, row in enumerate(tree))
    else:
        yield "", tree


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _row(item: Any, where: str, num_bytes: int = 0) -> Row | BadRow:
    if isinstance(item, dict):
        return Row(item, where)
    return BadRow("not an object", f"{where}: a row must be a JSON object, not {type(item).__name__}", num_bytes)
