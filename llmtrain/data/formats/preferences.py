"""Preference rows -> pairs of conversations with the same prompt, of which the first was preferred.

`preference_formats` is the table of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

from llmtrain.config.data import OnBadRow, Source
from llmtrain.data.formats.faults import UnfitRow, UnknownFormat, field_names, masked_quote
from llmtrain.data.formats.labels import label_of
from llmtrain.data.formats.messages import Conversation, Dialogue, answered, first_question, shown
from llmtrain.data.formats.naming import Naming
from llmtrain.data.formats.preference_formats import (
    CANONICAL,
    FINDERS,
    Comparison,
    PreferenceFormat,
    require_choice,
)
from llmtrain.data.formats.read import Dropped, FormatReader, read_examples
from llmtrain.data.formats.same_prompt import CHOICE_BASES
from llmtrain.data.formats.weights import row_weight, weight_note
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.rows import Row, has_field
from llmtrain.system.typing import Report

EQUAL = "chosen equal to rejected"
AGAINST_SCORES = "the chosen answer has the lower score, or the margin is below 0; it is trained as the better one"
EVEN_SCORES = "both answers have the same score, or the margin is 0; the chosen one is trained as the better one"


@dataclass(frozen=True)
class Preference:
    """Two conversations with the same prompt, of which the first was preferred."""

    chosen: Conversation
    rejected: Conversation
    margin: float | None  # by how much the chosen is better; None: the row does not say
    weight: float  # of its row, 1 if it gives none, / pairs of its ranking
    where: str  # file:line, for messages to the user
    num_bytes: int  # of both conversations, written as JSON
    group: str  # the first human turn: what the same question has in common

    def digest(self) -> bytes:
        """16 bytes that depend on the question alone, so that all its pairs fall into the same split."""
        return blake2b(self.group.encode(), digest_size=16).digest()


def iter_preferences(
    source: Source, on_bad_row: OnBadRow, ledger: SourceLedger, report: Report
) -> Iterator[Preference]:
    """The pairs of a source, read as `read_examples` does; the ledger counts pairs, since a row may hold many."""
    for pair in read_examples(source, pair_reader(source), on_bad_row, ledger, report, unit="preference"):
        if pair.margin is not None and pair.margin <= 0:
            ledger.note([AGAINST_SCORES if pair.margin < 0 else EVEN_SCORES])
        yield pair


def pair_reader(source: Source) -> Callable[[Row], FormatReader[Preference]]:
    """How the rows of a source are read whose first row is given. Raises ValueError for unknown names in `fields`."""
    check_preference_fields(source.fields, source.path)
    return partial(_reader, Naming.of(source))


def _reader(names: Naming, row: Row) -> FormatReader[Preference]:
    found = recognise_preference(row, names)
    notes = [note for note in (found.note, weight_note(names.view(row.fields)), names.note(row.fields)) if note]
    return FormatReader(found.name, partial(_preferences, found, names), partial(_described, found, notes))


def _preferences(found: PreferenceFormat, names: Naming, row: Row) -> list[Preference | Dropped]:
    """A row's pairs; those whose answers are equal are dropped and take no weight of their ranking."""
    preferences: list[Preference | Dropped] = []
    view = names.view(row.fields)
    weight = row_weight(view)
    for ranking in found.convert(view):
        pairs = [_pair(row, comparison) for comparison in ranking]
        num_different = sum(pair.chosen.messages != pair.rejected.messages for pair in pairs)
        preferences += [
            Dropped(EQUAL, pair.num_bytes)
            if pair.chosen.messages == pair.rejected.messages
            else replace(pair, weight=weight / num_different)
            for pair in pairs
        ]
    return preferences


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
    better, worse = (answered(side, num_prompt, row.where) for side in (chosen, rejected))
    return Preference(
        chosen=better,
        rejected=worse,
        margin=comparison.margin,
        weight=1.0,
        where=row.where,
        num_bytes=better.num_bytes + worse.num_bytes,
        group=first_question(chosen.messages),
    )


def _num_common(chosen: Dialogue, rejected: Dialogue) -> int:
    """How many messages are the prompt: those that both begin with, up to the last answer of the shorter."""
    shorter = min(len(chosen.messages), len(rejected.messages)) - 1
    return next((i for i in range(shorter) if chosen.messages[i] != rejected.messages[i]), shorter)


def _described(found: PreferenceFormat, notes: Sequence[str], first: Preference) -> str:
    """What was recognised, and one pair of it, on one line."""
    named = f" (fields {', '.join(found.fields)})" if found.fields else ""
    parts = [f"{found.name} rows{named}", *notes]
    num_prompt = first.chosen.num_prompt
    chosen, rejected = (
        " -> ".join(masked_quote(message["content"]) for message in side.messages[num_prompt:])
        for side in (first.chosen, first.rejected)
    )
    prompt = shown(first.chosen.messages[:num_prompt])
    return "; ".join([*parts, f"the first: {prompt} -> chosen {chosen}, rejected {rejected}"])


def check_preference_fields(fields: Mapping[str, str], path: str) -> None:
    """Raises ValueError if a source's `fields` maps a name that no format has."""
    for name in fields:
        if name not in CANONICAL:
            raise ValueError(
                f"{path}: the source's fields maps {name!r}, which is none of the names that preferences have: "
                f"{', '.join(CANONICAL)}"
            )


def recognise_preference(row: Row, names: Naming) -> PreferenceFormat:
    """The one format that a row is in, read as a source names things.

    Raises UnknownFormat where the row is in none, ValueError where it is in several, where `fields` maps a field that
    the row lacks, and for rows of single labelled answers, which hold no preference; UnfitRow for a fault of the row.
    """
    fields = names.fields
    for name, field in fields.items():
        if not has_field(row.fields, field):
            raise ValueError(f"{row.where}: no field {field!r} (mapped to {name!r} by the source's fields)")
    view = dict(names.view(row.fields))
    require_choice(view)
    named = {name for name in CHOICE_BASES if name in fields}
    unused = {*CHOICE_BASES} - named if named else set()
    view = {name: value for name, value in view.items() if value is not None and name not in unused}
    found = [found_format for find in FINDERS for found_format in find(Row(view, row.where))]
    found = [found_format for found_format in found if set(fields) - {"weight"} <= set(found_format.fields)]
    if len(found) == 1:
        return found[0]
    if found:
        choices = " and ".join(f"{choice.name} by {', '.join(choice.fields)}" for choice in found)
        raise ValueError(
            f"{row.where}: the row is in {len(found)} formats, {choices}: choose one by the source's fields"
        )
    if label_of(view.get("label")) is not None:
        raise ValueError(
            f"{row.where}: a row with a label (KTO) holds one answer and compares none: give rows with chosen and "
            "rejected, or set preference.loss=kto"
        )
    raise UnknownFormat(
        f"{row.where}: no format of preferences is recognised by the fields {field_names(row)}; name them by the "
        "source's fields, such as {prompt: FIELD, chosen: FIELD, rejected: FIELD} or {prompt: FIELD, responses: FIELD, "
        "ranks: FIELD}"
    )
