"""The benchmarks' text: the sources and the `pydoc` topics of the Python that runs them, about 13 MB on 3.11."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

SHORT_CHARS = 200
"""The least length of a short document: with it they are about 150 tokens long on average."""


def documents() -> list[str]:
    """The text of every module of the standard library, tests left out, in the order of their names."""
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    paths = [path for path in sorted(library.rglob("*.py")) if not left_out & set(path.relative_to(library).parts)]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    return [text for text in texts if text.strip()]


def short_documents(texts: Sequence[str]) -> Iterator[str]:
    """The same text in documents of SHORT_CHARS characters or a little more, cut at blank lines."""
    for text in texts:
        held = ""
        for paragraph in text.split("\n\n"):
            held += paragraph + "\n\n"
            if len(held) >= SHORT_CHARS:
                yield held
                held = ""
        if held.strip():
            yield held


def repeated(texts: Sequence[str], num_bytes: int) -> Iterator[str]:
    """The texts over and over, until there are `num_bytes` of them as UTF-8."""
    written = 0
    for text in cycle(texts):
        if written >= num_bytes:
            return
        written += len(text.encode())
        yield text


def write_rows(texts: Iterator[str] | Sequence[str], path: Path) -> int:
    """Write a JSON-lines file, one row a document; gives the UTF-8 bytes of the texts."""
    return _write(texts, path, lambda text: json.dumps({"text": text}, ensure_ascii=False) + "\n")


def write_text(texts: Iterator[str] | Sequence[str], path: Path) -> int:
    """Write the documents end to end as one text file; gives the UTF-8 bytes of the texts."""
    return _write(texts, path, lambda text: text)


def _write(texts: Iterator[str] | Sequence[str], path: Path, line: Callable[[str], str]) -> int:
    num_bytes = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for text in texts:
            num_bytes += len(text.encode())
            file.write(line(text))
    return num_bytes
