"""A few held-out rows as questions with the answers that they have: what a model is asked while it is tuned.

The rows are the first held-out ones of each source in turn. So they are the same at every evaluation, on every rank and
after a restart, and of a large file only the beginning is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmtrain.config.data import OnBadRow, Source, SourcesConfig, SpeltTokens, TemplatedSourcesConfig
from llmtrain.data.formats.faults import UnfitRow
from llmtrain.data.formats.instructions import Example, iter_examples
from llmtrain.data.formats.labelled import Labelled, has_labels, iter_labelled
from llmtrain.data.formats.messages import Conversation, Message
from llmtrain.data.formats.preferences import Preference, iter_preferences
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.prompts import prompt_ids
from llmtrain.data.split import split_of
from llmtrain.protocols import Report

MAX_ROWS = 20_000  # of a source that are looked through for held-out ones


@dataclass(frozen=True)
class Question:
    """A prompt, and how a held-out row answers it."""

    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    reference: str | None  # None: the row's answer is labelled undesirable


Read = Callable[[Source, OnBadRow, SourceLedger, Report], Iterator[Any]]
Answered = tuple[Conversation, bool]
"""A conversation, and whether its last message is a good answer."""


def chat_questions(
    data: SourcesConfig, tokenizer: PreTrainedTokenizerFast, count: int, max_tokens: int
) -> list[Question]:
    """At most `count` different questions of at most `max_tokens` tokens, of conversations."""

    def answered(example: Example) -> Answered | None:
        return (example, True) if isinstance(example, Conversation) else None

    return _questions(data, lambda source: iter_examples, answered, tokenizer, count, max_tokens)


def preference_questions(
    data: SourcesConfig, tokenizer: PreTrainedTokenizerFast, count: int, max_tokens: int
) -> list[Question]:
    """The same of pairs, whose chosen answer is the reference, and of labelled answers."""

    def answered(row: Preference | Labelled) -> Answered:
        return (row.conversation, row.desirable) if isinstance(row, Labelled) else (row.chosen, True)

    def reader(source: Source) -> Read:
        return iter_labelled if has_labels(source) else iter_preferences

    return _questions(data, reader, answered, tokenizer, count, max_tokens)


def _questions(
    data: SourcesConfig,
    reader: Callable[[Source], Read],
    answered: Callable[[Any], Answered | None],
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    max_tokens: int,
) -> list[Question]:
    spelt_tokens = data.special_tokens_in_text if isinstance(data, TemplatedSourcesConfig) else "warn"
    sources, fraction = (data.train, data.eval_fraction) if data.eval is None else (data.eval, None)
    readers = [_held_out(source, reader(source), fraction) for source in sources]
    found: dict[tuple[int, ...], Question] = {}
    for row in chain.from_iterable(zip_longest(*readers)):
        asked = None if row is None else answered(row)
        question = None if asked is None else _question(tokenizer, spelt_tokens, *asked)
        if question is not None and 0 < len(question.ids) <= max_tokens:
            found.setdefault(question.ids, question)
        if len(found) == count:
            break
    return list(found.values())


def _held_out(source: Source, read: Read, fraction: float | None) -> Iterator[Any]:
    rows = read(source, "skip", SourceLedger(path=source.path), lambda line: None)  # they were counted when stored
    return (row for row in islice(rows, MAX_ROWS) if fraction is None or split_of(row, fraction) == "eval")


def _question(
    tokenizer: PreTrainedTokenizerFast, spelt_tokens: SpeltTokens, conversation: Conversation, is_good: bool
) -> Question | None:
    """What comes before the last answer; None if nothing does, or the template refuses it."""
    answers = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    messages: Sequence[Message] = conversation.messages[: answers[-1]] if answers else ()
    if not messages:
        return None
    with suppress(UnfitRow, UnicodeEncodeError):
        reference = str(conversation.messages[answers[-1]].get("content") or "") if is_good else None
        return Question(prompt_ids(tokenizer, messages, conversation.tools, spelt_tokens), tuple(messages), reference)
    return None
