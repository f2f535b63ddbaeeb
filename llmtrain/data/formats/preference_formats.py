"""The formats of preference rows, one table: the fields that a row has -> the comparisons that it holds.

A pair of answers, a ranked list, an OpenAssistant tree: each row becomes *rankings*, lists of comparisons that
were made together; a ranking of K answers has K (K - 1) / 2, which count as one together (Ouyang et al. 2022, section
3.5). How an answer and its prompt are written down is what `row_formats` knows already. A new format is a function
among FINDERS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from llmtrain.data.formats.faults import UnfitRow, UnwantedRow
from llmtrain.data.formats.instructions import recognise
from llmtrain.data.formats.marked import marking_of
from llmtrain.data.formats.messages import Dialogue, Message, turn_message
from llmtrain.data.formats.naming import TOOLS, Naming
from llmtrain.data.formats.roles import begins_with_answer, is_turns
from llmtrain.data.formats.row_formats import CHOICE, INPUTS, QUESTIONS, SYSTEMS, RowFormat
from llmtrain.data.formats.same_prompt import CHOICE_BASES, require_same_prompt
from llmtrain.data.formats.trees import is_deleted, is_tree, tree_message
from llmtrain.data.sources.rows import Fields, Row
from llmtrain.system.finite import is_number

RESPONSES = ("responses", "answers", "completions")
"""Fields that may hold the answers of a ranked list."""
RANKS, SCORES = ("ranks", "rank"), ("scores", "score", "ratings", "rating", "overall_score")
"""Fields that may rank them: ranks from the best, or scores to the best; also of each answer."""
SCORE_PAIRS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
"""Fields whose difference is by how much the chosen answer of a pair is better."""
TEXTS = ("text", "content", "response", "answer", "completion")
"""Fields that may hold the text of an answer that is an object without a role."""
CANONICAL = (
    *("prompt", "messages", "conversations", "instruction", "input", "system", "tools"),
    *("chosen", "rejected", "margin", "responses", "ranks", "scores", "weight"),
)
"""The names that a source's `fields` may map."""
BEST_FIRST = "answers are taken as listed from the best to the worst: the row has neither ranks nor scores"
TREE_NOTE = "all answers to one message that have a rank are compared"


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, of which the first was preferred."""

    chosen: Dialogue
    rejected: Dialogue
    margin: float | None = None  # by how much it is better; None: the row does not say


Ranking = Sequence[Comparison]
"""Comparisons that come of one judgement, and so are not independent of each other."""


@dataclass(frozen=True)
class PreferenceFormat:
    """One way to read a row."""

    name: str
    fields: tuple[str, ...]  # what it reads of the row, by canonical names
    convert: Callable[[Fields], Sequence[Ranking]]  # raises UnfitRow, UnwantedRow
    note: str = ""  # what the user should know besides


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
        require_choice({name: fields.get(name) for name in CHOICE})
        chosen, rejected = (reader.read(fields, fields[name], name) for name in ("chosen", "rejected"))
        if is_whole:
            require_same_prompt(fields, chosen.messages)
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
        if is_bare:
            _require_no_numbers_beside({key: value for key, value in fields.items() if key != name}, len(answers))
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
    if is_tree(row.fields.get("prompt")):
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
        extras = (*SYSTEMS, *TOOLS, *(INPUTS if base in ("instruction", *QUESTIONS) else ()))
        self._kept = (*extras, *(() if base is None else (base,)))
        self._base = base
        self._format: RowFormat = recognise(Row(self._view(row.fields, answer), row.where), Naming())
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
        return view | {"chosen": answer, "rejected": answer}


def require_choice(fields: Fields) -> None:
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
    return is_turns(answer) and not begins_with_answer(answer[0])


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
        if not name:
            _require_no_numbers(objects)
        given = [item[name] for item in objects] if name else range(len(answers))
    if len(given) != len(answers) or not all(is_number(number) for number in given):
        raise UnfitRow("malformed ranking", f"{name!r} does not hold a number for each of {len(answers)} answers")
    is_score = name in SCORES
    return [float(number) if is_score else -float(number) for number in given], is_score


def _require_no_numbers(answers: Sequence[Mapping[str, Any]]) -> None:
    """Raises UnfitRow if answers hold a number that may rank them, under a name that is not known."""
    numbers = sorted({key for answer in answers for key, value in answer.items() if is_number(value)})
    if numbers:
        raise UnfitRow(
            "answers with unknown numbers",
            f"the answers hold {', '.join(map(repr, numbers))}, which may rank them: call what does `score` (higher is "
            "better) or `rank` (1 is the best), and leave the others out",
        )


def _require_no_numbers_beside(fields: Fields, num_answers: int) -> None:
    """Raises UnfitRow if a list beside the answers has a number or truth value for each: ratings, labels of steps."""
    numbers = [name for name, value in fields.items() if isinstance(value, list) and len(value) == num_answers]
    numbers = [name for name in numbers if all(_is_written_number(item) for item in fields[name])]
    if numbers:
        raise UnfitRow(
            "answers with unknown numbers",
            f"{', '.join(map(repr, numbers))} holds a number for each answer, which may rank them: call what does "
            "`scores` (higher is better) or `ranks` (1 is the best) by the source's fields, and leave the others out",
        )


def _is_written_number(value: Any) -> bool:
    """Whether a value is a number or a truth value, also as text."""
    if isinstance(value, str):
        return re.fullmatch(r"\s*[-+]?\d+(\.\d+)?\s*", value) is not None
    return isinstance(value, bool) or is_number(value)


def _margin(fields: Fields) -> float | None:
    """By how much a pair's chosen answer is better. Raises UnfitRow for a margin that is not a number."""
    margin = fields.get("margin")
    if margin is not None:
        if not is_number(margin):
            raise UnfitRow("malformed margin", f"'margin' holds {margin!r}, not a number")
        return float(margin)
    for better, worse in SCORE_PAIRS:
        if is_number(fields.get(better)) and is_number(fields.get(worse)):
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
        messages = [*before, tree_message(node, here)]
        replies = [reply for reply in node.get("replies") or [] if not is_deleted(reply)]
        answers = [
            (reply["rank"], turn_message({"role": reply["role"], "content": reply.get("text")}, here))
            for reply in replies
            if isinstance(reply, Mapping) and reply.get("role") == "assistant" and is_number(reply.get("rank"))
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


def _present(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in row.fields)
