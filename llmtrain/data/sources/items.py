"""A source -> its text files, rows and bad rows: the one reader, of documents, rows, pairs and prompts alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from llmtrain.config.data import Source
from llmtrain.data.sources.compressed import readable
from llmtrain.data.sources.files import Files, HubDataset, file_kind
from llmtrain.data.sources.readers import READERS, count_rows, read_hub, read_rows
from llmtrain.data.sources.rows import BadRow, Row, Wanted
from llmtrain.data.sources.separated import separated_documents
from llmtrain.data.sources.slices import WHOLE, Slice, parse_slice, shares
from llmtrain.data.sources.text import LARGE_CHARS, Document, FileText, InvalidUtf8, decoded_chunks


def iter_items(source: Source, location: Files | HubDataset, wanted: Wanted) -> Iterator[Document | Row | BadRow]:
    """Every text, row and bad row of a source, in order, or those of its slice.

    A slice is one of the rows of all files of rows and of the documents of all separated files, and one of the
    characters of all other text files, in order. Raises ValueError for a separator without text files.
    """
    paths = () if isinstance(location, HubDataset) else location.paths
    kinds = {path: file_kind(path, source) or "" for path in paths}
    if source.separator is not None and READERS.keys() >= set(kinds.values()):
        raise ValueError(f"{source.path}: separator={source.separator!r} does nothing here: it holds no text files")
    if isinstance(location, HubDataset):
        yield from read_hub(source, location.name, location.commit)
        return
    part = parse_slice(source.slice)
    spans = {} if part == WHOLE else _spans(kinds, source.separator, part, wanted)
    for path, kind in kinds.items():
        span = spans.get(path)
        if span is not None and span[0] == span[1]:
            continue
        if kind in READERS or source.separator is not None:
            items = _counted_items(path, kind, source.separator, wanted)
            yield from items if span is None else islice(items, *span)
        else:
            with readable(path):
                document = _text_document(path, span)
            yield document


def _counted_items(path: Path, kind: str, separator: str | None, wanted: Wanted) -> Iterator[Document | Row | BadRow]:
    """The rows of a file of rows, or the documents of a text file with a separator: what a slice counts."""
    if separator is None or kind in READERS:
        yield from read_rows(path, kind, wanted)
        return
    with readable(path):
        yield from separated_documents(path, separator)


def _spans(
    kinds: Mapping[Path, str], separator: str | None, part: Slice, wanted: Wanted
) -> dict[Path, tuple[int, int]]:
    """[start, end) of each file that a slice of the source is: of its rows or documents, or of its characters."""
    num_items: dict[Path, int] = {}
    num_chars: dict[Path, int] = {}
    for path, kind in kinds.items():
        if kind in READERS:
            num_items[path] = count_rows(path, kind, wanted)
        elif separator is not None:
            num_items[path] = sum(1 for _ in _counted_items(path, kind, separator, wanted))
        else:
            num_chars[path] = _count_chars(path)
    spans: dict[Path, tuple[int, int]] = {}
    for counts in (num_items, num_chars):
        spans |= zip(counts, shares(list(counts.values()), part), strict=True)
    return spans


def _count_chars(path: Path) -> int:
    """The characters of a text file; of one that is not UTF-8 its bytes."""
    try:
        with readable(path):
            return sum(map(len, decoded_chunks(path)))
    except InvalidUtf8:
        return path.stat().st_size


def _text_document(path: Path, span: tuple[int, int] | None) -> Document | BadRow:
    """A text file, or the characters [start, end) of it, read again for each use where it is too large to hold."""
    held: list[str] = []
    num_chars = num_bytes = 0
    try:
        for chunk in decoded_chunks(path):
            num_chars += len(chunk)
            num_bytes += len(chunk.encode())
            if num_chars <= LARGE_CHARS:
                held.append(chunk)
            else:
                held.clear()
    except InvalidUtf8 as error:
        return BadRow("invalid UTF-8", str(error), path.stat().st_size)
    start, end = span or (0, num_chars)
    if num_chars <= LARGE_CHARS:
        text = "".join(held)[start:end]
        return Document(text, str(path), len(text.encode()))
    large = FileText(path, start, end)
    if span is not None:
        num_bytes = sum(len(chunk.encode()) for chunk in large.chunks())
    return Document(large, str(path), num_bytes)
