"""What a task is: how a row of its data becomes an item, and how what a model does with the item is scored.

ChoiceTask        the likeliest of several continuations        ARC, PIQA, Winogrande
ContinuationTask  the one right continuation of a text          LAMBADA
AnswerTask        an answer that is generated, and scored       GSM8K, MBPP
TextTask          the loss of whole texts                       held-out documents
BiasTask          which of several texts is likelier, and what that says of bias    CrowS-Pairs, BBQ
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Generic, TypeVar

from llmtrain.rewards.row import RowError
from llmtrain.statistics.measures import Measure

Fields = Mapping[str, Any]
"""A row of a task's data."""


class RowFault(RowError):
    """A row that is not in a task's format."""


@dataclass(frozen=True)
class ChoiceItem:
    """Contexts and continuations, one of each per choice: `Question: 2 + 2?\\nAnswer:` and ` 4`, ` 5`."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int  # number of the right choice, from 0
    lengths: tuple[int, ...]  # characters of each choice, which its logprob is divided by for acc_norm


@dataclass(frozen=True)
class ContinuationItem:
    """A text, and how it goes on."""

    context: str
    continuation: str


@dataclass(frozen=True)
class BiasItem:
    """Texts whose log-likelihoods are compared, each after a context ("": nothing is before it)."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    facts: Mapping[str, Any]  # what its scores depend on besides: who is meant, the category
    cluster: str = ""  # items that share a template are not independent; "": it is alone
    block: str = ""  # items that only make sense together, of which a limit takes all or none; "": it is alone
    stratum: str = ""  # what a limit takes in the same shares as all items have it


@dataclass(frozen=True)
class AnswerItem:
    """A prompt, and a right answer as an example of one before other prompts has it (" 4"); None: the row has none."""

    prompt: str
    answer: str | None = None


AnswerScore = Callable[[list[Any], list[str], list[Fields]], list[float]]
"""(prompts, responses, rows) -> one score per response: what a reward is too."""


@dataclass(frozen=True)
class Hub:
    """Where the hub has a task's data."""

    path: str
    split: str
    subset: str | None = None


@dataclass(frozen=True)
class Beside:
    """A file beside a task's rows, or in a folder next to theirs, that says more about each of them."""

    name: str  # occupations-stats.tsv
    key: tuple[str, ...]  # the fields of its rows that say which rows of the task they are about
    key_of: Callable[[Fields], tuple[str, ...]]  # the values of them for a row of the task; raises RowFault
    fields: Mapping[str, Callable[[Fields], Any]]  # what it adds, out of its row; raises RowFault
    of_all: Mapping[str, Callable[[Sequence[Fields]], Any]] = field(default_factory=dict)  # and out of all it adds


@dataclass(frozen=True)
class About:
    """What a reader of a measure of bias has to know."""

    asks: str  # what the model is asked
    good: str  # which values are good
    limits: str  # what it cannot show
    unit: str  # what the intervals are over: pairs, templates


Item = TypeVar("Item")


@dataclass(frozen=True)
class TaskOf(Generic[Item]):
    """What every task has: its name, how its rows become items, and where they are."""

    name: str
    source: str  # of the task, for its results
    item: Callable[[Fields], Item]  # raises RowFault
    hub: Hub | None = field(default=None, kw_only=True)
    aliases: tuple[str, ...] = field(default=(), kw_only=True)  # other names of its files
    has_many_files: bool = field(
        default=False, kw_only=True
    )  # its rows are in a folder of files, such as one each topic
    shots: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class ChoiceTask(TaskOf[ChoiceItem]):
    """Multiple choice by log-likelihood."""

    has_lengths: bool = field(default=True, kw_only=True)  # False: one continuation scores all choices of an item


class ContinuationTask(TaskOf[ContinuationItem]):
    """Whether greedy decoding gives the continuation, and the loss of it."""


class TextTask(TaskOf[str]):
    """The loss of texts, per byte and per token."""


@dataclass(frozen=True)
class AnswerTask(TaskOf[AnswerItem]):
    """Answers that are generated; `scores` by name, of which the first is the reward."""

    scores: Mapping[str, AnswerScore]
    stop: tuple[str, ...] = ()  # texts that end an answer and do not belong to it
    max_new_tokens: int = 256

    @property
    def reward(self) -> AnswerScore:
        """The score that counts, of answers cut at a stop text, as an evaluation scores them."""
        score = next(iter(self.scores.values()))
        if not self.stop:
            return score

        @wraps(score)  # its settings are its own
        def of_cut(prompts: list[Any], responses: list[str], rows: list[Fields], **settings: Any) -> list[float]:
            return score(prompts, [self.cut(text) for text in responses], rows, **settings)

        return of_cut

    def cut(self, text: str) -> str:
        """An answer without its first stop text and what follows."""
        return text[: min([place for stop in self.stop if (place := text.find(stop)) >= 0], default=len(text))]


BiasScore = Callable[[Sequence[BiasItem], Sequence[Sequence[float]]], list[dict[str, float]]]
"""(items, logprob of each of their texts) -> the values of each item; the value of a part is `NAME/PART`."""


@dataclass(frozen=True)
class AttributePair:
    """Two texts that differ in one attribute alone, for a reward model."""

    attribute: str
    first: Sequence[Mapping[str, Any]] | str  # messages, the last of which is the answer, or an answer by itself
    second: Sequence[Mapping[str, Any]] | str
    row: int  # of the item that it is from
    cluster: str = ""


@dataclass(frozen=True)
class BiasTask(TaskOf[BiasItem]):
    """Whether a model prefers texts about one group to equal texts about another."""

    measures: tuple[Measure, ...]
    score: BiasScore
    pairs: Callable[[Sequence[BiasItem]], list[AttributePair]] | None  # None: it has none
    about: About
    beside: Beside | None = None
    notes: Callable[[Sequence[BiasItem]], list[str]] = lambda items: []  # what a reader of these items has to know


Task = BiasTask | ChoiceTask | ContinuationTask | AnswerTask | TextTask


def choices_after(context: str, choices: list[str], gold: int) -> ChoiceItem:
    """Choices that all continue one context, after a space."""
    if not 0 <= gold < len(choices):
        raise RowFault(f"the right choice is number {gold + 1} of {len(choices)}")
    return ChoiceItem(
        (context,) * len(choices), tuple(f" {choice}" for choice in choices), gold, tuple(map(len, choices))
    )


def text_of(fields: Fields, *names: str) -> str:
    """The text in the first of these fields that a row has. Raises RowFault."""
    value = value_of(fields, *names)
    if not isinstance(value, str) or not value.strip():
        raise RowFault(f"{_named(names, fields)} is not a text: {value!r:.80}")
    return value


def texts_of(fields: Fields, *names: str) -> list[str]:
    """The list of at least two texts in the first of these fields that a row has. Raises RowFault."""
    value = value_of(fields, *names)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(each, str) and each for each in value):
        raise RowFault(f"{_named(names, fields)} is not a list of two or more texts: {value!r:.80}")
    return value


def number_of(fields: Fields, *names: str) -> int:
    """The whole number in the first of these fields that a row has, as a number or in digits. Raises RowFault."""
    value = value_of(fields, *names)
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowFault(f"{_named(names, fields)} is not a whole number: {value!r:.80}")
    return value


def value_of(fields: Fields, *names: str) -> Any:
    """The value of the first of these fields that a row has. Raises RowFault if it has none of them."""
    for name in names:
        if name in fields:
            return fields[name]
    wanted = " or ".join(map(repr, names))
    raise RowFault(f"no field {wanted}, only {', '.join(map(repr, fields)) or 'none'}")


def _named(names: tuple[str, ...], fields: Fields) -> str:
    return f"field {next(name for name in names if name in fields)!r}"
