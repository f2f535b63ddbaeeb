"""Rows of anyone's: `{prompt, choices, answer}` and `{prompt, answer}`, for which no code is needed."""

from __future__ import annotations

import re
from string import ascii_uppercase
from typing import Any

from llmtrain.data.thoughts import without_thoughts
from llmtrain.rewards.final_answer import number
from llmtrain.tasks.task import (
    AnswerItem,
    AnswerTask,
    ChoiceItem,
    ChoiceTask,
    Fields,
    RowFault,
    choices_after,
    text_of,
    texts_of,
    value_of,
)

PROMPTS = ("prompt", "question", "query")
ANSWERS = ("answer", "gold", "label")


def choice_item(fields: Fields) -> ChoiceItem:
    """The answer is the number of a choice from 0, its letter, or its text."""
    choices, answer = texts_of(fields, "choices"), value_of(fields, *ANSWERS)
    if answer in choices:
        gold = choices.index(answer)
    elif isinstance(answer, int) and not isinstance(answer, bool):
        gold = answer
    elif isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in ascii_uppercase:
        gold = ascii_uppercase.index(answer.strip().upper())
    else:
        raise RowFault(f"the answer {answer!r:.80} is neither a choice, nor its number from 0, nor its letter")
    return choices_after(text_of(fields, *PROMPTS), choices, gold)


def answer_item(fields: Fields) -> AnswerItem:
    """The answer is a text or a number, or a list of right ones."""
    accepted = _accepted(fields)
    return AnswerItem(text_of(fields, *PROMPTS), f" {accepted[0]}")


def right(prompts: list[Any], responses: list[str], rows: list[Fields]) -> list[float]:
    """1 if the response is a right answer: the same text without case and full stop, or the same number."""
    return [
        float(any(_same(without_thoughts(response), answer) for answer in _accepted(row)))
        for response, row in zip(responses, rows, strict=True)
    ]


def _accepted(fields: Fields) -> list[str]:
    answer = value_of(fields, *ANSWERS)
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(each, str | int | float) and str(each).strip() for each in answers):
        raise RowFault(f"the answer is neither a text nor a number, nor a list of them: {answer!r:.80}")
    return [str(each) for each in answers]


def _same(response: str, answer: str) -> bool:
    first, second = number(response), number(answer)
    return _plain(response) == _plain(answer) or (first is not None and first == second)


def _plain(text: str) -> str:
    return re.sub(r"[.!]+$", "", " ".join(text.split())).casefold()


CHOICES = ChoiceTask("choices", "rows of prompt, choices and answer", choice_item)
ANSWERED = AnswerTask(
    "answers", "rows of prompt and answer", answer_item, {"acc": right}, stop=("\n\n",), max_new_tokens=64
)
