"""The text of a document: a string, or a file too large to hold, read again each time in bounded memory.

Large texts travel in *pieces*, cut only where a tokenizer may be expected to have a token bound whatever
follows: after a single line break, or before a single space. `data.tokenize` checks that expectation.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from llmtrain.data.sources.compressed import open_text

CHUNK_BYTES = 1 << 20
LARGE_CHARS = 4 << 20
"""A text file longer than this is not held in memory."""
PIECE_CHARS = 1 << 15
"""Pieces are at least this long, and at most twice, as long as the text has a place to cut."""

LINE_CUT = re.compile(r"(?<=\S\n)(?=\S)")
SPACE_CUT = re.compile(r"(?<=\S)(?= \S)")


class InvalidUtf8(ValueError):
    """A file that is not UTF-8; the text is its line and byte."""


@dataclass(frozen=True)
class FileText:
    """The characters [start, end) of a file that is too large to hold."""

    path: Path
    start: int
    end: int

    def chunks(self) -> Iterator[str]:
        """The text in order, in strings of about a megabyte."""
        position = 0
        for chunk in decoded_chunks(self.path):
            wanted = chunk[max(0, self.start - position) : max(0, self.end - position)]
            if wanted:
                yield wanted
            position += len(chunk)
            if position >= self.end:
                return


@dataclass(frozen=True)
class Document:
    """One document; `where` is its place for messages: `file`, `file:line`, `dataset row 12`."""

    text: str | FileText
    where: str
    num_bytes: int  # as UTF-8

    @property
    def num_chars(self) -> int:
        return len(self.text) if isinstance(self.text, str) else self.text.end - self.text.start

    def pieces(self) -> Iterator[str]:
        """The text in order; one piece unless it is long."""
        if isinstance(self.text, FileText):
            return cut_pieces(self.text.chunks(), PIECE_CHARS)
        return cut_pieces([self.text], PIECE_CHARS)

    def digest(self) -> bytes:
        """16 bytes that depend on the whole text."""
        hasher = blake2b(digest_size=16)
        for chunk in self.text.chunks() if isinstance(self.text, FileText) else [self.text]:
            hasher.update(chunk.encode())
        return hasher.digest()


def cut_pieces(chunks: Iterable[str], piece_chars: int) -> Iterator[str]:
    """Strings -> pieces of `piece_chars` to twice that, whose places depend on the joined text alone.

    A stretch without a line break or single space to cut at stays whole, however long it is.
    """
    pending: list[str] = []
    pending_chars = 0
    needed = 2 * piece_chars
    for chunk in chunks:
        pending.append(chunk)
        pending_chars += len(chunk)
        if pending_chars <= needed:
            continue
        text = "".join(pending)
        start = 0
        while len(text) - start > 2 * piece_chars:
            cut = _cut(text, start + piece_chars, start + 2 * piece_chars)
            if cut is None:
                break
            yield text[start:cut]
            start = cut
        pending, pending_chars = [text[start:]], len(text) - start
        # Where nothing could be cut, look again only after the text has doubled: linear time in all.
        needed = max(2 * piece_chars, 2 * pending_chars)
    if pending_chars:
        yield "".join(pending)


def _cut(text: str, first: int, last: int) -> int | None:
    """The first line cut within [first, last], else the first space cut, else the first cut of either kind beyond."""
    found = LINE_CUT.search(text, first, last + 1) or SPACE_CUT.search(text, first, last + 1)
    if found is not None:
        return found.start()
    beyond = [found.start() for found in (LINE_CUT.search(text, last), SPACE_CUT.search(text, last)) if found]
    return min(beyond, default=None)


def decoded_chunks(path: Path) -> Iterator[str]:
    """A file's text in strings of about a megabyte, line ends as they are, a byte order mark left out.

    Raises InvalidUtf8 with the line and the byte offset, after all text before it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, lines, first = 0, 1, True
    with open_text(path) as file:
        while True:
            data = file.read(CHUNK_BYTES)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                held = len(error.object) - len(data)  # bytes of an unfinished character, kept from the chunk before
                line = lines + error.object[: error.start].count(b"\n")
                where = f"{path}:{line}: invalid UTF-8 at byte {offset - held + error.start}"
                yield error.object[: error.start].decode().removeprefix("\ufeff" if first else "")
                raise InvalidUtf8(where) from None
            offset += len(data)
            lines += text.count("\n")
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not data:
                return
