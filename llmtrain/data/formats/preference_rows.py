"""A source of preferences -> pairs of conversations, of which the first was preferred, each accounted for.

What `conversations.iter_examples` is to instructions: the first good row says which format the source is in
(`preference_formats`), and every row is read by it. The ledger's documents are pairs here, since a row may hold
many: a ranking of K answers holds K (K - 1) / 2, which count as one together (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from llmtrain.config.sections import Source
from llmtrain.data.formats.conversations import SHOWN_MESSAGES, Conversation, row_bytes, row_files
from llmtrain.data.formats.instructions import Dialogue, renamed
from llmtrain.data.formats.messages import UnfitRow, UnwantedRow, shortened
from llmtrain.data.formats.preferences import (
    Comparison,
    PreferenceFormat,
    check_preference_fields,
    recognise_preference,
)
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_items
from llmtrain.data.sources.files import Files, resolve
from llmtrain.data.sources.readers import BadRow, Row

EQUAL = "chosen equal to rejected"


@dataclass(frozen=True)
class Preference:
    """Two conversations with the same prompt, of which the first was preferred."""

    chosen: Conversation
    rejected: Conversation
    margin: float | None  # by how much the chosen is better; None: the row does not say
    weight: float  # 1 / pairs of its ranking
    where: str  # file:line, for messages to the user
    num_bytes: int  # of both conversations, written as JSON
    group: str  # the first human turn: what the same question has in common

    def digest(self) -> bytes:
        """16 bytes that stand for the question alone, so that all its pairs fall into the same split."""
        return blake2b(self.group.encode(), digest_size=16).digest()


def iter_preferences(
    source: Source, on_bad_row: Literal["error", "skip"], ledger: SourceLedger, say: Callable[[str], None]
) -> Iterator[Preference]:
    """The pairs of a source; everything else is counted in the ledger, where the caller counts what is yielded.

    `say` is called once, with the format that was recognised and its first row. Raises ValueError, one line,
    for a source that is missing, empty or unreadable, for a row that is bad (unless `on_bad_row` is skip), and
    where no format, or more than one, is recognised.
    """
    check_preference_fields(source.fields, source.path)
    location = resolve(source)
    if isinstance(location, Files):
        location = row_files(source, location)
        ledger.files = len(location.paths)
        ledger.files_not_read = dict(location.not_read)
    preference_format: PreferenceFormat | None = None
    first_fault = ""
    for item in iter_items(source, location):
        assert isinstance(item, Row | BadRow), item
        read = item if isinstance(item, BadRow) else _read(item, preference_format, source, ledger)
        if isinstance(read, BadRow):
            if on_bad_row == "error":
                raise ValueError(f"{read.message}; mend it, or set data.on_bad_row=skip")
            first_fault = first_fault or f"; {read.message}"
            ledger.bad_row(read.reason, read.num_bytes)
            continue
        row_format, preferences = read
        if preferences and preference_format is None:
            preference_format, ledger.row_format = row_format, row_format.name
            say(f"{source.path}: {_described(row_format, preferences[0])}")
        yield from preferences
    if preference_format is None:
        dropped = "".join(f", {tally.documents} {reason}" for reason, tally in ledger.dropped.items())
        raise ValueError(
            f"{source.path}: no preference to train on ({ledger.read.documents} read{dropped}){first_fault}"
        )


def _read(
    row: Row, row_format: PreferenceFormat | None, source: Source, ledger: SourceLedger
) -> tuple[PreferenceFormat, list[Preference]] | BadRow:
    """A row's pairs, entered as read; those that are not to be used are entered as dropped too."""
    try:
        form = row_format or recognise_preference(row, source.fields)
        rankings = form.convert(renamed(row.fields, source.fields))
        pairs = [[_pair(row, comparison) for comparison in ranking] for ranking in rankings]
    except UnwantedRow as unwanted:
        num_bytes = row_bytes(row)
        ledger.read.add(num_bytes)
        ledger.drop(unwanted.reason, num_bytes)
        return form, []
    except UnfitRow as fault:
        known = "" if row_format is None else f" (read as {row_format.name})"
        return BadRow(fault.reason, f"{row.where}: {fault}{known}", row_bytes(row))
    except UnicodeEncodeError:
        message = f"{row.where}: a string holds half a surrogate pair, which is not valid Unicode"
        return BadRow("invalid UTF-8", message, row_bytes(row))
    except RecursionError:
        return BadRow("nested too deep", f"{row.where}: the row is nested too deep", 0)
    preferences: list[Preference] = []
    for ranking in pairs:
        different = [pair for pair in ranking if pair.chosen.messages != pair.rejected.messages]
        for pair in ranking:
            ledger.read.add(pair.num_bytes)
            if pair.chosen.messages == pair.rejected.messages:
                ledger.drop(EQUAL, pair.num_bytes)
        preferences += [replace(pair, weight=1 / len(different)) for pair in different]
    return form, preferences


def _pair(row: Row, comparison: Comparison) -> Preference:
    """A comparison in its one form, of weight 1; raises UnfitRow, UnicodeEncodeError, RecursionError."""
    chosen, rejected = comparison.chosen, comparison.rejected
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side.messages[-1]["role"] != "assistant":
            raise UnfitRow(
                "does not end with an answer", f"{name!r} ends with a {side.messages[-1]['role']} turn, not an answer"
            )
    num_prompt = _num_common(chosen, rejected)
    if not num_prompt:
        raise UnfitRow("no common prompt", "chosen and rejected do not begin with the same message")
    better, worse = (_conversation(side, num_prompt, row.where) for side in (chosen, rejected))
    asked = next((message for message in chosen.messages if message["role"] == "user"), chosen.messages[0])
    num_bytes = better.num_bytes + worse.num_bytes
    return Preference(better, worse, comparison.margin, 1.0, row.where, num_bytes, asked["content"].strip())


def _conversation(side: Dialogue, num_prompt: int, where: str) -> Conversation:
    """One side of a comparison; raises UnicodeEncodeError, RecursionError."""
    num_bytes = len(json.dumps([side.messages, side.tools], ensure_ascii=False).encode())
    return Conversation(tuple(side.messages), num_prompt, side.tools, where, num_bytes)


def _num_common(chosen: Dialogue, rejected: Dialogue) -> int:
    """How many messages are the prompt: those that both begin with, up to the last answer of the shorter."""
    shorter = min(len(chosen.messages), len(rejected.messages)) - 1
    return next((i for i in range(shorter) if chosen.messages[i] != rejected.messages[i]), shorter)


def _described(row_format: PreferenceFormat, first: Preference) -> str:
    """What was recognised, and one pair of it, on one line."""
    named = f" (fields {', '.join(row_format.fields)})" if row_format.fields else ""
    parts = [f"{row_format.name} rows{named}"]
    if row_format.note:
        parts.append(row_format.note)
    prompt = first.chosen.messages[: first.chosen.num_prompt]
    shown = [f"{message['role']} {shortened(message['content'])}" for message in prompt[:SHOWN_MESSAGES]]
    if len(prompt) > SHOWN_MESSAGES:
        shown.append(f"{len(prompt) - SHOWN_MESSAGES} more")
    answers = [
        " -> ".join(shortened(message["content"]) for message in side.messages[first.chosen.num_prompt :])
        for side in (first.chosen, first.rejected)
    ]
    return "; ".join([*parts, f"the first: {' -> '.join(shown)} -> chosen {answers[0]}, rejected {answers[1]}"])
