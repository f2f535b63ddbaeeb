"""A text file that holds several documents -> its documents, cut at a separator, in bounded memory.

    A story.\n<|endoftext|>\nAnother one.\n   ->   "A story.", "Another one."

Line breaks beside a separator, and at the ends of the file, are part of no document.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmtrain.data.sources.rows import BadRow
from llmtrain.data.sources.text import LARGE_CHARS, Document, FileText, InvalidUtf8, decoded_chunks

BREAKS = "\r\n"


def separated_documents(path: Path, separator: str) -> Iterator[Document | BadRow]:
    """The documents of a text file, empty ones between two separators too.

    A file that is not UTF-8 gives those before the fault, and a bad row for the rest.
    """
    document = _Open(path, number=1, start=0)
    tail, num_bytes = "", 0  # what may be the beginning of a separator; of the documents so far
    try:
        for chunk in decoded_chunks(path):
            *ended, rest = (tail + chunk).split(separator)
            for text in ended:
                document.add(text)
                closed = document.closed()
                num_bytes += closed.num_bytes
                yield closed
                document = _Open(path, document.number + 1, document.end + len(separator))
            kept = max(0, len(rest) - len(separator) + 1)
            document.add(rest[:kept])
            tail = rest[kept:]
    except InvalidUtf8 as error:
        yield BadRow("invalid UTF-8", str(error), max(0, path.stat().st_size - num_bytes))
        return
    document.add(tail)
    last = document.closed()
    if last.num_chars:
        yield last


class _Open:
    """A document whose end was not read yet; a long one is not held."""

    def __init__(self, path: Path, number: int, start: int) -> None:
        self._path, self.number, self._start = path, number, start
        self.end = start  # in characters of the file
        self._held: list[str] = []
        self._num_bytes = 0
        self._leading = self._trailing = 0  # line breaks, each a byte and a character
        self._has_text = False

    def add(self, text: str) -> None:
        """Append the next stretch of the file."""
        self.end += len(text)
        self._num_bytes += len(text.encode())
        if self.end - self._start <= LARGE_CHARS:
            self._held.append(text)
        else:
            self._held.clear()
        if not self._has_text:
            self._leading += len(text) - len(text.lstrip(BREAKS))
        if within := text.rstrip(BREAKS):
            self._has_text, self._trailing = True, 0
        self._trailing += len(text) - len(within)

    def closed(self) -> Document:
        """The document, now that all of it was added."""
        where = f"{self._path}, document {self.number}"
        if self.end - self._start <= LARGE_CHARS:
            text = "".join(self._held).strip(BREAKS)
            return Document(text, where, len(text.encode()))
        if not self._has_text:
            return Document("", where, 0)
        breaks = self._leading + self._trailing
        large = FileText(self._path, self._start + self._leading, self.end - self._trailing)
        return Document(large, where, self._num_bytes - breaks)
