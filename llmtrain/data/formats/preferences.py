"""Preference rows: the formats in which people keep them, and what their rows become: pairs of conversations.

A pair of answers, a ranked list, an OpenAssistant tree: each row becomes *rankings*, lists of comparisons that
were made together; a ranking of K answers has K (K - 1) / 2, which count as one together (Ouyang et al. 2022, section
3.5). How an answer and its prompt are written down is what `instructions` knows already. A new format is a function
among FINDERS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import permutations
from typing import Any

from llmtrain.config.sections import OnBadRow, Source
from llmtrain.data.formats.instructions import CHOICE, CHOICE_BASES, INPUTS, SYSTEMS, RowFormat, recognise, renamed
from llmtrain.data.formats.messages import (
    Conversation,
    Dialogue,
    Message,
    UnfitRow,
    UnknownFormat,
    UnwantedRow,
    answered,
    first_question,
    marked_messages,
    marking_of,
    shortened,
    shown,
    turn_message,
)
from llmtrain.data.formats.read import Dropped, FormatReader, read_examples
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.rows import Fields, Row, has_field
from llmtrain.protocols import Report

RESPONSES = ("responses", "answers", "completions")
"""Fields that may hold the answers of a ranked list."""
RANKS, SCORES = ("ranks", "rank"), ("scores", "score", "ratings")
"""Fields that may rank them: ranks from the best, or scores to the best; also of each answer."""
SCORE_PAIRS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
"""Fields whose difference is by how much the chosen answer of a pair is better."""
TEXTS = ("text", "content", "response", "answer", "completion")
"""Fields that may hold the text of an answer that is an object without a role."""
CANONICAL = (
    *("prompt", "messages", "conversations", "instruction", "input", "system", "tools"),
    *("chosen", "rejected", "margin", "responses", "ranks", "scores"),
)
"""The names that a source's `fields` may map."""
BEST_FIRST = "answers are taken as listed from the best to the worst: the row has neither ranks nor scores"
TREE_NOTE = "all answers to one message that have a rank are compared"
EQUAL = "chosen equal to rejected"


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, of which the first was preferred."""

    chosen: Dialogue
    rejected: Dialogue
    margin: float | None = None  # by how much it is better; None: the row does not say


Ranking = Sequence[Comparison]
"""Comparisons that come of one judgement, and so are not independent of each other."""


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
        """16 bytes that depend on the question alone, so that all its pairs fall into the same split."""
        return blake2b(self.group.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class PreferenceFormat:
    """One way to read a row."""

    name: str
    fields: tuple[str, ...]  # what it reads of the row, by canonical names
    convert: Callable[[Fields], Sequence[Ranking]]  # raises UnfitRow, UnwantedRow
    note: str = ""  # what the user should know besides


def iter_preferences(
    source: Source, on_bad_row: OnBadRow, ledger: SourceLedger, report: Report
) -> Iterator[Preference]:
    """The pairs of a source, read as `read_examples` does; the ledger counts pairs, since a row may hold many."""
    check_preference_fields(source.fields, source.path)
    return read_examples(source, partial(_reader, source.fields), on_bad_row, ledger, report, unit="preference")


def _reader(fields: Mapping[str, str], row: Row) -> FormatReader[Preference]:
    found = recognise_preference(row, fields)
    return FormatReader(found.name, partial(_preferences, found, fields), partial(_described, found))


def _preferences(found: PreferenceFormat, fields: Mapping[str, str], row: Row) -> list[Preference | Dropped]:
    """A row's pairs; those whose answers are equal are dropped and take no weight of their ranking."""
    preferences: list[Preference | Dropped] = []
    for ranking in found.convert(renamed(row.fields, fields)):
        pairs = [_pair(row, comparison) for comparison in ranking]
        num_different = sum(pair.chosen.messages != pair.rejected.messages for pair in pairs)
        preferences += [
            Dropped(EQUAL, pair.num_bytes)
            if pair.chosen.messages == pair.rejected.messages
            else replace(pair, weight=1 / num_different)
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


def _described(found: PreferenceFormat, first: Preference) -> str:
    """What was recognised, and one pair of it, on one line."""
    named = f" (fields {', '.join(found.fields)})" if found.fields else ""
    parts = [f"{found.name} rows{named}", *([found.note] if found.note else [])]
    num_prompt = first.chosen.num_prompt
    chosen, rejected = (
        " -> ".join(shortened(message["content"]) for message in side.messages[num_prompt:])
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


def recognise_preference(row: Row, fields: Mapping[str, str]) -> PreferenceFormat:
    """The one format that a row is in, read under the canonical names of the source's `fields`.

    Raises UnknownFormat where the row is in none, ValueError where it is in several, where `fields` maps a field that
    the row lacks, and for rows of single labelled answers, which hold no preference; UnfitRow for a fault of the row.
    """
    for name, field in fields.items():
        if not has_field(row.fields, field):
            raise ValueError(f"{row.where}: no field {field!r} (mapped to {name!r} by the source's fields)")
    view = dict(renamed(row.fields, fields))
    _require_choice(view)
    named = {name for name in CHOICE_BASES if name in fields}
    unused = {*CHOICE_BASES} - named if named else set()
    view = {name: value for name, value in view.items() if value is not None and name not in unused}
    found = [found_format for find in FINDERS for found_format in find(Row(view, row.where))]
    found = [found_format for found_format in found if set(fields) <= set(found_format.fields)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(f"{choice.name} by {', '.join(choice.fields)}" for choice in found)
        raise ValueError(f"{row.where}: the row is in {len(found)} formats, {names}: choose one by the source's fields")
    if isinstance(view.get("label"), bool):
        raise ValueError(
            f"{row.where}: a row with a label (KTO) holds one answer and compares none: give rows with chosen and "
            "rejected, or set preference.loss=kto"
        )
    names = ", ".join(map(repr, row.fields)) or "none"
    raise UnknownFormat(
        f"{row.where}: no format of preferences is recognised by the fields {names}; name them by the source's "
        "fields, such as {prompt: FIELD, chosen: FIELD, rejected: FIELD} or {prompt: FIELD, responses: FIELD, "
        "ranks: FIELD}"
    )


def _pairs(row: Row) -> Iterator[PreferenceFormat]:
    """`chosen` and `rejected`, as whole dialogues or as answers to what another field holds."""
    if not row.fields.keys() >= CHOICE:
        return
    is_whole = _is_whole(row.fields["chosen"])
    base = None if is_whole else _base(row)
    if base is None and not is_whole:
        return
    reader = _Answers(row, base, row.fields["chosen"])

    def convert(fields: Fields) -> Sequence[Ranking]:
        _require_choice({name: fields.get(name) for name in CHOICE})
        chosen, rejected = (reader.read(fields, fields[name], name) for name in ("chosen", "rejected"))
        return [[Comparison(chosen, rejected, _margin(fields))]]

    name = reader.name if is_whole else "preference"
    yield PreferenceFormat(name, (*reader.fields, "chosen", "rejected", *_present(row, ("margin",))), convert)


def _rankings(row: Row) -> Iterator[PreferenceFormat]:
    """A prompt and a list of answers, with ranks, with scores, or from the best to the worst."""
    name = next((name for name in RESPONSES if isinstance(row.fields.get(name), list)), None)
    base = _base(row) if name is not None else None
    if name is None or base is None or not row.fields[name]:
        return
    ranked_by = next((field for field in (*RANKS, *SCORES) if isinstance(row.fields.get(field), list)), None)
    first = row.fields[name][0]
    is_bare = ranked_by is None and not (isinstance(first, Mapping) and {*RANKS, *SCORES} & first.keys())
    reader = _Answers(row, base, _answer(first))

    def convert(fields: Fields) -> Sequence[Ranking]:
        answers = fields.get(name)
        if not isinstance(answers, list) or len(answers) < 2:
            raise UnfitRow("no preference", f"{name!r} holds no list of two answers or more")
        numbers, has_scores = _numbers(fields, ranked_by, answers)
        read = [reader.read(fields, _answer(answer), f"answer {i} of {name}") for i, answer in enumerate(answers)]
        ranking = [
            Comparison(read[i], read[j], numbers[i] - numbers[j] if has_scores else None)
            for i, j in permutations(range(len(answers)), 2)
            if numbers[i] > numbers[j]
        ]
        if not ranking:
            raise UnwantedRow("no preference: all answers are ranked equal")
        return [ranking]

    named = () if ranked_by is None else ("ranks" if ranked_by in RANKS else "scores",)
    note = BEST_FIRST if is_bare else ""
    yield PreferenceFormat("ranked list", (*reader.fields, "responses", *named), convert, note)


def _trees(row: Row) -> Iterator[PreferenceFormat]:
    """OpenAssistant's trees, under `prompt` or as the row itself (Köpf et al. 2023)."""
    prompt = row.fields.get("prompt")
    if isinstance(prompt, Mapping) and "replies" in prompt:
        yield PreferenceFormat(
            "OpenAssistant tree", ("prompt",), lambda fields: _tree(fields.get("prompt"), "'prompt'"), TREE_NOTE
        )
    elif {"text", "role", "replies"} <= row.fields.keys():
        yield PreferenceFormat("OpenAssistant tree", (), lambda fields: _tree(fields, "the row"), TREE_NOTE)


FINDERS = (_pairs, _rankings, _trees)


class _Answers:
    """Reads an answer of a row together with its prompt, as a row whose `chosen` is that answer is read."""

    def __init__(self, row: Row, base: str | None, answer: Any) -> None:
        """`base` is the field of the prompt; None: answers are whole dialogues. Raises ValueError."""
        extras = (*SYSTEMS, "tools", *(INPUTS if base == "instruction" else ()))
        self._kept = (*extras, *(() if base is None else (base,)))
        self._base = base
        self._format: RowFormat = recognise(Row(self._view(row.fields, answer), row.where), {})
        self.name = self._format.name
        self.fields = tuple(name for name in self._kept if name in row.fields)

    def read(self, fields: Fields, answer: Any, place: str) -> Dialogue:
        """The prompt and the answer. Raises UnfitRow, which names the field, `place`."""
        try:
            return self._format.convert(self._view(fields, answer))  # type: ignore[return-value]
        except UnfitRow as fault:
            raise UnfitRow(fault.reason, str(fault).replace("'chosen'", place)) from None

    def _view(self, fields: Fields, answer: Any) -> dict[str, Any]:
        view = {name: fields[name] for name in self._kept if name in fields}
        marking = marking_of(view.get(self._base)) if self._base is not None else None
        if self._base is not None and marking is not None:
            view[self._base] = marked_messages(view[self._base], marking, repr(self._base), open_end=True)
        return view | {"chosen": answer, "rejected": answer}


def _require_choice(fields: Fields) -> None:
    """Raises UnfitRow if one of a pair's answers is null."""
    for name in sorted(CHOICE & fields.keys()):
        if fields[name] is None:
            raise UnfitRow("no preference", f"{name!r} is missing or null, so the row prefers nothing")


def _base(row: Row) -> str | None:
    """The field that holds the prompt; None: there is none. Raises ValueError if there are several."""
    bases = [name for name in CHOICE_BASES if name in row.fields]
    if len(bases) > 1:
        raise ValueError(
            f"{row.where}: {' and '.join(bases)} could each be the prompt: choose one by the source's fields: "
            f"{{prompt: {bases[0]}}}"
        )
    return bases[0] if bases else None


def _is_whole(answer: Any) -> bool:
    """Whether an answer is a dialogue that begins with the prompt's messages."""
    if marking_of(answer) is not None:
        return True
    first = answer[0] if isinstance(answer, list) and answer else None
    return isinstance(first, Mapping) and turn_message(first, "the first message")["role"] != "assistant"


def _answer(item: Any) -> Any:
    """An answer of a list: text, a message, or an object that holds the text beside its rank or score."""
    if not isinstance(item, Mapping) or "role" in item or "from" in item:
        return item
    return next((item[name] for name in TEXTS if isinstance(item.get(name), str)), item)


def _numbers(fields: Fields, field: str | None, answers: Sequence[Any]) -> tuple[list[float], bool]:
    """A number for each answer, higher is better, and whether they are scores. Raises UnfitRow."""
    given: Sequence[Any]
    if field is not None:
        name, given = field, fields.get(field) or ()
    else:
        objects = [answer if isinstance(answer, Mapping) else {} for answer in answers]
        name = next((each for each in (*RANKS, *SCORES) if all(each in item for item in objects)), "")
        given = [item[name] for item in objects] if name else range(len(answers))
    if len(given) != len(answers) or not all(_is_number(number) for number in given):
        raise UnfitRow("malformed ranking", f"{name!r} does not hold a number for each of {len(answers)} answers")
    is_score = name in SCORES
    return [float(number) if is_score else -float(number) for number in given], is_score


def _margin(fields: Fields) -> float | None:
    """By how much a pair's chosen answer is better. Raises UnfitRow for a margin that is not a number."""
    margin = fields.get("margin")
    if margin is not None:
        if not _is_number(margin):
            raise UnfitRow("malformed margin", f"'margin' holds {margin!r}, not a number")
        return float(margin)
    for better, worse in SCORE_PAIRS:
        if _is_number(fields.get(better)) and _is_number(fields.get(worse)):
            return float(fields[better]) - float(fields[worse])
    return None


def _tree(root: Any, place: str) -> list[Ranking]:
    """For each message of a tree, the comparisons between its ranked answers; rank 0 is the best.

    Raises UnfitRow for a node that is not a message, UnwantedRow where no two answers have different ranks.
    """
    rankings: list[Ranking] = []
    waiting: list[tuple[Any, list[Message]]] = [(root, [])]
    while waiting:
        node, before = waiting.pop()
        here = f"a reply of depth {len(before)} in {place}" if before else place
        if not isinstance(node, Mapping) or not isinstance(node.get("replies") or [], list):
            raise UnfitRow("not a message", f"{here} is not an object with role, text and a list of replies")
        messages = [*before, turn_message({"role": node.get("role"), "content": node.get("text")}, here)]
        replies = [reply for reply in node.get("replies") or [] if not _is_deleted(reply)]
        answers = [
            (reply["rank"], turn_message({"role": reply["role"], "content": reply.get("text")}, here))
            for reply in replies
            if isinstance(reply, Mapping) and reply.get("role") == "assistant" and _is_number(reply.get("rank"))
        ]
        ranking = [
            Comparison(Dialogue([*messages, chosen], len(messages)), Dialogue([*messages, rejected], len(messages)))
            for (better, chosen), (worse, rejected) in permutations(answers, 2)
            if better < worse
        ]
        rankings += [ranking] if ranking else []
        waiting += [(reply, messages) for reply in reversed(replies)]
    if not rankings:
        raise UnwantedRow("no preference: no two answers have different ranks")
    return rankings


def _is_deleted(reply: Any) -> bool:
    return isinstance(reply, Mapping) and bool(reply.get("deleted"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _present(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in row.fields)
