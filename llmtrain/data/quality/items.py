"""A row as the measures see it: its texts, and what each of them is in the row.

{"prompt": "2 + 2?", "completion": "4"}    user "2 + 2?", assistant "4"
{"chosen": ..., "rejected": ...}           prompt, chosen, rejected
a text file, {"text": ...}                 text
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import xxhash

from llmtrain.config.data import Source
from llmtrain.data.formats.asked import Asked
from llmtrain.data.formats.instructions import PlainText
from llmtrain.data.formats.labelled import Labelled
from llmtrain.data.formats.messages import Conversation, Message
from llmtrain.data.formats.preference_formats import RANKS, RESPONSES, SCORES
from llmtrain.data.formats.preferences import Preference
from llmtrain.data.formats.read import Dropped, ReadRow, read_rows
from llmtrain.data.formats.token_rows import TokenRow
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents, strings_of
from llmtrain.data.sources.files import resolve
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.rows import BadRow, Row, Wanted
from llmtrain.data.sources.text import Document
from llmtrain.data.survey import READS, Use

CUT_CHARS = 200_000
"""Of a longer text the beginning is kept; its size, and whether it is a duplicate, are those of the whole."""
CHOSEN, REJECTED, PROMPT, TEXT = "chosen", "rejected", "prompt", "text"


class Part(NamedTuple):
    """One text of a row."""

    name: str  # text; user, assistant, ...; prompt, chosen, rejected
    text: str


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int


@dataclass(frozen=True)
class Item:
    """A document, a chat, a pair, a labelled answer or a prompt."""

    source: int
    where: str  # file:line
    parts: tuple[Part, ...]
    num_bytes: int  # of the whole texts, as UTF-8
    num_chars: int
    digest: int  # 64 bits that depend on the whole texts, the tools and the label
    desirable: bool | None = None  # of a labelled answer
    first_is_better: bool | None = None  # of two answers of a list, whether the one listed first is preferred

    @cached_property
    def text(self) -> str:
        """All its texts, a line each."""
        return "\n".join(part.text for part in self.parts)

    @property
    def is_cut(self) -> bool:
        """Whether only its beginning is kept."""
        return self.num_chars > sum(len(part.text) for part in self.parts)

    def part(self, name: str) -> str:
        """The texts of a name, a line each."""
        return "\n".join(part.text for part in self.parts if part.name == name)


class Lost(NamedTuple):
    """A row, or a part of one, of which there is nothing to measure."""

    reason: str
    message: str  # with file:line, if it is known
    num_rows: int = 1


def read_items(source: Source, number: int, use: Use | None, has_rows: bool) -> Iterator[Item | Lost]:
    """The items of a source, read for a use; None: no format is recognised, so that all strings of a row are its text.

    Raises ValueError for a source that is not there or cannot be read.
    """
    if use is None:
        yield from _strings(source, number)
    elif not has_rows:
        yield from _texts(source, number)
    else:
        for read in read_rows(source, READS[use](source)):
            yield from _of_row(read, number)


def _of_row(read: ReadRow[Any], number: int) -> Iterator[Item | Lost]:
    if isinstance(read.found, BadRow):
        yield Lost(read.found.reason, read.found.message)
        return
    assert isinstance(read.row, Row)
    for example in read.found:
        if isinstance(example, TokenRow):
            yield Lost("ids, which are no text", read.row.where)
        elif isinstance(example, Dropped):
            yield Lost(example.reason, read.row.where)
        else:
            yield _item(example, read.row, number)


def _item(example: Any, row: Row, number: int) -> Item:
    match example:
        case Document():
            return _of_document(example, number)
        case PlainText():
            return item_of([Part(TEXT, example.text)], example.where, number)
        case Conversation():
            return item_of(_spoken(example.messages), example.where, number, tools=example.tools)
        case Labelled():
            talk = example.conversation
            return item_of(_spoken(talk.messages), example.where, number, tools=talk.tools, desirable=example.desirable)
        case Asked():
            asked = example.dialogue
            return item_of(_spoken(asked.messages), example.where, number, tools=asked.tools)
        case Preference():
            is_better = _first_is_better(example, row)
            tools = example.chosen.tools
            return item_of(_pair(example), example.where, number, tools=tools, first_is_better=is_better)
    raise AssertionError(type(example))


def item_of(
    parts: Sequence[Part],
    where: str,
    source: int = 0,
    *,
    tools: Sequence[Any] = (),
    desirable: bool | None = None,
    first_is_better: bool | None = None,
) -> Item:
    """An item of texts that are in memory; long ones are cut. Other tools or another label make it another item."""
    hasher = xxhash.xxh3_64()
    if tools or desirable is not None:
        hasher.update(json.dumps([tools, desirable], sort_keys=True, default=str).encode())
    num_bytes = num_chars = 0
    kept: list[Part] = []
    for part in parts:
        data = part.text.encode(errors="surrogatepass")
        hasher.update(part.name.encode() + b"\0" + data + b"\0")
        kept.append(Part(part.name, part.text[: max(0, CUT_CHARS - num_chars)]))
        num_bytes += len(data)
        num_chars += len(part.text)
    return Item(source, where, tuple(kept), num_bytes, num_chars, hasher.intdigest(), desirable, first_is_better)


def _of_document(document: Document, number: int) -> Item:
    if isinstance(document.text, str):
        return item_of([Part(TEXT, document.text)], document.where, number)
    start = ""
    for chunk in document.text.chunks():
        start += chunk
        if len(start) >= CUT_CHARS:
            break
    digest = int.from_bytes(document.digest()[:8], "little")
    part = Part(TEXT, start[:CUT_CHARS])
    return Item(number, document.where, (part,), document.num_bytes, document.num_chars, digest)


def _spoken(messages: Sequence[Message]) -> list[Part]:
    """What is said in each message, and what it calls."""
    parts = []
    for message in messages:
        calls = message.get("tool_calls")
        called = json.dumps(calls, ensure_ascii=False, default=str) if calls else ""
        parts.append(Part(str(message["role"]), "\n".join(text for text in (message["content"], called) if text)))
    return parts


def _pair(pair: Preference) -> list[Part]:
    prompt = pair.chosen.messages[: pair.chosen.num_prompt]
    parts = [Part(PROMPT, part.text) for part in _spoken(prompt)]
    for name, side in ((CHOSEN, pair.chosen), (REJECTED, pair.rejected)):
        answer = _spoken(side.messages[side.num_prompt :])
        parts.append(Part(name, "\n".join(part.text for part in answer)))
    return parts


def _first_is_better(pair: Preference, row: Row) -> bool | None:
    """Whether the preferred answer comes first in a list that ranks or scores order; None: the row has no such list."""
    listed = next((row.fields[name] for name in RESPONSES if isinstance(row.fields.get(name), list)), None)
    if listed is None or not any(_ranks(row.fields, listed)):
        return None
    places = []
    for side in (pair.chosen, pair.rejected):
        text = side.messages[-1]["content"]
        places.append(next((i for i, each in enumerate(listed) if text in strings_of(each)), None))
    first, second = places
    return None if first is None or second is None or first == second else first < second


def _ranks(fields: Mapping[str, Any], listed: Sequence[Any]) -> Iterator[bool]:
    """Whether the row, or an answer of it, has a field that orders the answers."""
    for name in (*RANKS, *SCORES):
        yield isinstance(fields.get(name), list)
        yield any(isinstance(each, Mapping) and name in each for each in listed)


def _texts(source: Source, number: int) -> Iterator[Item | Lost]:
    """Files that are one text each, or several with a separator."""
    ledger = SourceLedger(path=source.path)
    for document in iter_documents(source, "skip", ledger):
        yield _of_document(document, number)
    for reason, tally in (*ledger.bad_rows.items(), *ledger.dropped.items()):
        yield Lost(reason, source.path, tally.documents)


def _strings(source: Source, number: int) -> Iterator[Item | Lost]:
    for item in iter_items(source, resolve(source), Wanted(lambda row: True)):
        if isinstance(item, BadRow):
            yield Lost(item.reason, item.message)
        elif isinstance(item, Document):
            yield _of_document(item, number)
        elif parts := [Part(name, "\n".join(strings_of(value))) for name, value in item.fields.items()]:
            yield item_of([part for part in parts if part.text], item.where, number)
